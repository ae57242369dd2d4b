"""A critic that is bounded by its layers: no penalty, exact resuming, and what does not bound it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations
from transformers import TrainerCallback

from support.gans import everything, points, tiny_critic, tiny_generator, wgan_arguments, wgan_trainer
from support.tiny import history, logged

spectral_norm: Callable[[nn.Module], nn.Module] = parametrizations.spectral_norm


def bounded_critic(seed: int = 1, bound: Callable[[nn.Module], nn.Module] = spectral_norm) -> nn.Module:
    critic = tiny_critic(seed)
    for layer in critic:
        if isinstance(layer, nn.Linear):
            bound(layer)
    return critic


@pytest.mark.parametrize("bound", [spectral_norm, parametrizations.orthogonal, nn.utils.spectral_norm])
@pytest.mark.parametrize("penalty", ["none", None])
def test_the_slope_stays_below_one_without_a_penalty(tmp_path: Path, penalty: Any, bound: Any) -> None:
    """With a plain critic of the same steps for comparison."""
    results = []
    for critic, given in (
        (bounded_critic(bound=bound), {"penalty": penalty}),
        (tiny_critic(), {"penalty": "none", "clip_limit": 1e6}),
    ):
        trainer = wgan_trainer(
            tmp_path, critic=critic, max_steps=80, eval_dataset=points(), penalty_target=1.0, logging_steps=40, **given
        )
        trainer.train()
        results.append(trainer.evaluate()["eval_gradient_violation"])
        assert logged(trainer, "gradient_penalty") == [] and len(logged(trainer, "wasserstein_estimate")) == 2
    assert -1 < results[0] < 0.02 < results[1]


class Fixed(nn.Module):
    """Points around zero, which do not move."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :2] + 0 * self.shift


def test_the_estimate_of_a_linear_critic_is_the_distance(tmp_path: Path) -> None:
    """Between a cloud and the same one, shifted by (3, 4): the Wasserstein distance is 5."""
    trainer = wgan_trainer(
        tmp_path, Fixed(), spectral_norm(nn.Linear(2, 1)), penalty="none", max_steps=300,
        train_dataset=torch.randn(4000, 2) + torch.tensor([3.0, 4.0]), per_device_train_batch_size=400,
        logging_steps=100,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "wasserstein_estimate")[-1] == pytest.approx(5.0, abs=0.1)


class Vectors(TrainerCallback):
    """The vectors of the power iteration after each step."""

    def __init__(self, critic: nn.Module) -> None:
        self.critic, self.kept = critic, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.kept.append({name: buffer.clone() for name, buffer in self.critic.named_buffers()})


@pytest.mark.parametrize("bound", [spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("penalty", ["none", "one"])
def test_resumed_equals_uninterrupted(tmp_path: Path, penalty: str, bound: Any) -> None:
    """The vectors of the power iteration are in the checkpoint: other networks, resumed, go on with them."""
    results = []
    for resume in (False, True):
        critic = bounded_critic(1 + int(resume), bound)
        vectors = Vectors(critic)
        trainer = wgan_trainer(
            tmp_path, tiny_generator(int(resume)), critic, penalty=penalty, max_steps=7, save_strategy="steps",
            save_steps=3, callbacks=[vectors], ema_decay=0.8,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        results.append((everything(trainer), history(trainer)[:7], vectors.kept[-4:]))
    uninterrupted, resumed = results
    assert uninterrupted[0].keys() == resumed[0].keys()
    assert [name for name in resumed[0] if not torch.equal(resumed[0][name], uninterrupted[0][name])] == []
    assert uninterrupted[1] == resumed[1]
    for one, other in zip(uninterrupted[2], resumed[2], strict=True):
        assert len(one) >= 5 and all(torch.equal(buffer, other[name]) for name, buffer in one.items())
    assert not all(torch.equal(buffer, resumed[2][0][name]) for name, buffer in resumed[2][3].items())


def test_evaluations_and_pictures_do_not_iterate(tmp_path: Path) -> None:
    results = []
    for given in ({}, {"eval_strategy": "steps", "eval_steps": 1, "sample_steps": 1, "eval_dataset": points()}):
        trainer = wgan_trainer(tmp_path, critic=bounded_critic(), penalty="none", **given)
        trainer.train()
        results.append(everything(trainer))
    assert [name for name in results[0] if not torch.equal(results[0][name], results[1][name])] == []


def test_the_saved_critic_is_the_trained_one(tmp_path: Path) -> None:
    trainer = wgan_trainer(tmp_path, critic=bounded_critic(), penalty="none")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    critic = bounded_critic(5)
    critic.load_state_dict(load_file(tmp_path / "final" / "critic.safetensors"))
    assert torch.equal(critic.eval()(points()), trainer.critic.eval()(points()))


def partly_bounded() -> nn.Module:
    critic = bounded_critic()
    critic[3] = nn.Linear(12, 12)
    return critic


@pytest.mark.parametrize(
    ("critic", "layer"),
    [
        (tiny_critic(), "0"),
        (partly_bounded(), "3"),
        (bounded_critic(bound=parametrizations.weight_norm), "0"),
        (nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 2), nn.Flatten()), "1"),
        (nn.Linear(2, 1), "Linear"),
    ],
)
def test_layers_that_are_not_bounded(tmp_path: Path, critic: nn.Module, layer: str) -> None:
    with pytest.raises(ValueError, match=f"does not bound the slope of the critic's layer '{layer}'. Give a penalty"):
        wgan_trainer(tmp_path, critic=critic, penalty="none")
    assert wgan_arguments(tmp_path, penalty=None).penalty == "none"
