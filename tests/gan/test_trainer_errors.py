"""Bad input is refused at the start, with the argument's name and a remedy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_fam.gan import WGANTrainer
from support.gans import points, tiny_critic, tiny_generator, wgan_arguments, wgan_trainer

ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"n_critic": 0}, "n_critic=0: give a whole number of at least 1"),
    ({"n_critic": 2.5}, "n_critic=2.5: give a whole number"),
    ({"n_critic": "abc"}, "n_critic='abc': give a whole number"),
    ({"n_critic": float("nan")}, "n_critic=nan: give a whole number"),
    ({"n_critic": None}, "n_critic=None: give a whole number"),
    ({"n_critic_warmup": 0}, "n_critic_warmup=0"),
    ({"n_critic_warmup_every": 500}, "n_critic_warmup_every=500 does not apply without n_critic_warmup"),
    ({"penalty_radius": 2.0}, "penalty_radius=2.0 does not apply to penalty_points='line'"),
    ({"n_critic_warmup_every": -1}, "n_critic_warmup_every=-1: give a whole number of at least 0"),
    ({"latent_size": 0}, "latent_size=0"),
    ({"latent_prior": "gaussian"}, "latent_prior='gaussian': give one of 'normal', 'uniform'"),
    ({"penalty": "both"}, "penalty='both': give one of 'one', 'two', 'zero', 'none'"),
    ({"penalty_points": "lines"}, "penalty_points='lines': give one of 'line', 'local'"),
    ({"penalty_lambda": 0}, 'penalty_lambda=0: give a positive number, or penalty="none"'),
    ({"num_classes": 0}, "num_classes=0: give a whole number of at least 1"),
    ({"penalty_lambda": "strong"}, "penalty_lambda='strong' is not a number"),
    ({"penalty_lambda": None}, "penalty_lambda=None: give a positive number"),
    ({"penalty_target": -1.0}, "penalty_target=-1.0"),
    ({"penalty_target": None}, "penalty_target=None: give a positive number"),
    ({"learning_rate": -1.0}, "^learning_rate=-1.0"),
    ({"adam_beta1": 1.5}, "^adam_beta1=1.5"),
    ({"adam_beta2": None}, "^adam_beta2=None"),
    ({"critic_lr_scheduler_type": "nope"}, "critic_lr_scheduler_type='nope': give one of 'linear'"),
    ({"lr_scheduler_type": "nope"}, "^lr_scheduler_type='nope': give one of 'linear'"),
    ({"sample_high": None}, "sample_low=-1.0, sample_high=None"),
    ({"penalty": "zero", "penalty_target": 2.0}, "penalty='zero', penalty_target=2.0 does not apply"),
    ({"penalty_radius": float("nan")}, "penalty_radius=nan"),
    ({"penalty_every": 0}, "penalty_every=0"),
    ({"clip_limit": 0.01}, "clip_limit=0.01 and penalty='one'"),
    ({"penalty": "none", "clip_limit": -0.1}, "clip_limit=-0.1: give a positive number"),
    ({"critic_learning_rate": -1.0}, "critic_learning_rate=-1.0"),
    ({"generator_adam_beta1": 1.0}, "generator_adam_beta1=1.0"),
    ({"ema_decay": 1.0}, "ema_decay=1.0: give a number between 0 and 1"),
    ({"fp16": True}, "fp16=True does not work, .*. Use bf16=True"),
    (
        {"max_steps": 7, "max_generator_steps": 2},
        "max_steps=7 contradicts max_generator_steps=2, which means max_steps=4",
    ),
    ({"eval_samples": 0}, "eval_samples=0"),
    ({"sample_low": 1.0}, "sample_low=1.0, sample_high=1.0"),
]


@pytest.mark.parametrize(("given", "message"), ARGUMENTS, ids=lambda x: "-".join(x) if isinstance(x, dict) else "")
def test_arguments(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wgan_arguments(tmp_path, **{"penalty_target": 1.0, **given})


def test_numbers_from_yaml(tmp_path: Path) -> None:
    """YAML reads 1e-4 as a string."""
    args = wgan_arguments(tmp_path, learning_rate="1e-4", critic_learning_rate="1e-3", ema_decay=".9")
    assert (args.learning_rate, args.critic_learning_rate, args.ema_decay) == (1e-4, 1e-3, 0.9)


def test_whole_numbers_are_kept_as_such(tmp_path: Path) -> None:
    args = wgan_arguments(tmp_path, n_critic=2.0, sample_count=9.0)
    assert (args.n_critic, args.sample_count) == (2, 9)
    assert isinstance(args.n_critic, int) and isinstance(args.sample_count, int)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"torch_compile": True}, "torch_compile=True: compiled networks cannot be differentiated twice"),
    ({"gradient_checkpointing": True}, "gradient_checkpointing=True"),
    ({"ddp_static_graph": True}, "ddp_static_graph=True"),
    ({"bf16_full_eval": True}, "fp16_full_eval or bf16_full_eval would convert the networks"),
    ({"latent_size": 4}, r"latent_size=4: the generator fails on latent codes of shape \(2, 4\)"),
    ({"latent_size": None}, "latent_size is unknown"),
    ({"optimizers": (None, None)}, "optimizers does not apply to two networks"),
    ({"train_dataset": []}, "train_dataset is empty"),
    ({"train_dataset": torch.zeros(4, 2, dtype=torch.uint8)}, "give floating-point ones"),
    ({"train_dataset": [torch.zeros(2), torch.zeros(3)]}, "samples of different shapes"),
    ({"train_dataset": [{"a": 1.0, "b": 2.0}] * 4}, "items have the fields 'a', 'b'"),
    ({"train_dataset": ["text"] * 4}, "an item of type str is no tensor"),
    ({"train_dataset": torch.zeros(4)}, r"give each as a tensor of shape \(1,\)"),
    ({"train_dataset": torch.zeros(4, 3)}, r"the generator makes samples of shape \(2,\), the real ones .* \(3,\)"),
    ({"data_collator": torch.stack}, "data_collator must return {'samples': tensor}"),
    ({"penalty": "none"}, "penalty=\"none\" without clip_limit does not bound the slope of the critic's layer '0'"),
    ({"critic_lr_scheduler_type": "reduce_lr_on_plateau"}, "critic_lr_scheduler_type: .* follows a metric"),
]


def test_networks_that_the_launcher_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match="--dynamo_backend inductor.*: compiled networks cannot"):
        wgan_trainer(tmp_path, tiny_generator(), tiny_critic(), train_dataset=points())


@pytest.mark.parametrize(("given", "message"), SETTINGS, ids=lambda x: "-".join(x) if isinstance(x, dict) else "")
def test_settings(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wgan_trainer(tmp_path, **given).train()


NETWORKS = [
    (tiny_generator(), nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "critic: '1' is batch norm"),
    (tiny_generator(), nn.Linear(2, 3), r"the critic returned shape \(2, 3\) for 2 samples"),
    (tiny_generator(), nn.Linear(5, 1), "the critic fails on generated samples of shape"),
    (tiny_generator().requires_grad_(False), tiny_critic(), "generator: no parameter of Sequential requires"),
    (lambda z: z, tiny_critic(), "generator is a function: give a torch.nn.Module"),
]


@pytest.mark.parametrize(("generator", "critic", "message"), NETWORKS)
def test_networks(tmp_path: Path, generator: Any, critic: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wgan_trainer(tmp_path, generator, critic).train()


def test_other_arguments(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match="args: a TrainingArguments has no settings of the critic"):
        WGANTrainer(tiny_generator(), tiny_critic(), args=args, train_dataset=points())
    with pytest.raises(ValueError, match="model_init does not apply"):
        WGANTrainer(tiny_generator(), tiny_critic(), args=wgan_arguments(tmp_path), model_init=tiny_critic)


@pytest.mark.parametrize(("missing", "given"), [("matplotlib", {"sample_steps": 2}), ("scipy", {"eval_emd": True})])
def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, given: dict[str, Any]) -> None:
    """Said before the training, not in it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(ValueError, match=rf"{missing}: pip install 'hf-fam\[gan\]'"):
        wgan_trainer(tmp_path, **given)


def test_trying_the_networks_changes_nothing(tmp_path: Path) -> None:
    """Neither statistics nor modes nor the random state."""
    generator = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    generator[2].eval()
    before = {n: t.clone() for n, t in generator.state_dict().items()}
    states = []
    for dataset in (None, points()):
        wgan_trainer(tmp_path, generator, tiny_critic(), train_dataset=dataset)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert [m.training for m in generator] == [True, True, False, True]
    assert all(torch.equal(t, before[n]) for n, t in generator.state_dict().items())


def picture_networks(*ends: nn.Module) -> tuple[nn.Module, nn.Module]:
    generator = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)), *ends)
    return generator, nn.Sequential(nn.Flatten(), nn.Linear(16, 1))


@pytest.mark.parametrize(
    ("ends", "scale", "message"),
    [
        ([nn.Tanh()], 255, r"values from 0 to 255, but the generator ends in Tanh, .* -1 to 1. .*\(x / 127.5 - 1\)"),
        ([nn.Sigmoid()], 255, r"generator ends in Sigmoid, with values from 0 to 1. .*\(x / 255\)"),
        ([], 255, "images have values from 0 to 255, but sample_low=-1 is black and sample_high=1 is white"),
    ],
)
def test_pictures_out_of_range(tmp_path: Path, ends: list[nn.Module], scale: float, message: str) -> None:
    # The first pictures are black: more than two have to be looked at.
    pictures = torch.linspace(0, 1, 40)[:, None, None, None].expand(40, 1, 4, 4) ** 4 * scale
    pictures = torch.cat([pictures, pictures.flip(0)])
    with pytest.raises(ValueError, match=message):
        wgan_trainer(tmp_path, *picture_networks(*ends), train_dataset=pictures)


@pytest.mark.parametrize(
    ("ends", "low", "high", "settings"),
    [
        ([nn.Tanh()], -1, 1, {}),
        ([nn.Tanh()], 0, 1, {}),
        ([nn.Sigmoid()], 0, 1, {}),
        ([], -2.2, 2.7, {}),  # standardized
        ([], 0, 255, {"sample_low": 0, "sample_high": 255}),
    ],
)
def test_pictures_in_range(tmp_path: Path, ends: list[nn.Module], low: float, high: float, settings: Any) -> None:
    pictures = low + (high - low) * torch.rand(40, 1, 4, 4)
    wgan_trainer(tmp_path, *picture_networks(*ends), train_dataset=pictures, **settings)


def test_points_have_no_range_but_that_of_the_generator(tmp_path: Path) -> None:
    wgan_trainer(tmp_path, train_dataset=100 * points())
    with pytest.raises(ValueError, match="ends in Tanh"):
        wgan_trainer(tmp_path, nn.Sequential(nn.Linear(3, 2), nn.Tanh()), train_dataset=100 * points())
