"""Interrupted and resumed WGAN training equals uninterrupted training, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_fam.gan import WGANTrainer
from support.gans import everything, points, tiny_critic, tiny_generator, wgan_trainer
from support.tiny import history

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout_in_both": {"dropout": 0.3},
    "average_and_own_schedules": {
        "ema_decay": 0.8,
        "critic_lr_scheduler_type": "linear",
        "generator_lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "generator_learning_rate": 3e-3,
        "critic_adam_beta1": 0.3,
    },
    "accumulated_local_points": {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "penalty_points": "local_both",
        "dropout": 0.2,
    },
    "lazy_with_warm_up": {"penalty_every": 2, "n_critic_warmup": 3, "n_critic_warmup_steps": 1},
    "clipped_rmsprop": {"penalty": "none", "clip_limit": 0.1, "optim": "rmsprop"},
}


def run(path: Path, given: dict[str, Any], resume: bool = False) -> WGANTrainer:
    """Seven steps, saved after the third: two critic steps a generator step, so in the middle of a round."""
    given = dict(given)
    dropout = given.pop("dropout", 0.0)
    networks = tiny_generator(int(resume), dropout), tiny_critic(7 + int(resume), dropout)
    trainer = wgan_trainer(path, *networks, max_steps=7, save_strategy="steps", save_steps=3, **given)
    trainer.train(resume_from_checkpoint=str(path / "checkpoint-3") if resume else None)
    return trainer


@pytest.mark.parametrize("setting", SETTINGS)
def test_resumed_equals_uninterrupted(tmp_path: Path, setting: str) -> None:
    uninterrupted = run(tmp_path, SETTINGS[setting])
    states = torch.get_rng_state()
    resumed = run(tmp_path, SETTINGS[setting], resume=True)
    expected, result = everything(uninterrupted), everything(resumed)
    assert expected.keys() == result.keys()
    assert [name for name in expected if not torch.equal(expected[name], result[name])] == []
    assert any(name.startswith("optimizer") for name in result)
    assert history(resumed)[:7] == history(uninterrupted)[:7]
    assert resumed.lr_scheduler.get_last_lr() == uninterrupted.lr_scheduler.get_last_lr()
    assert torch.equal(torch.get_rng_state(), states)


def test_evaluations_pictures_and_samples_leave_training_as_it_is(tmp_path: Path) -> None:
    given = {"dropout": 0.3, "ema_decay": 0.8}
    plain = run(tmp_path / "plain", given)
    watched = run(
        tmp_path / "watched",
        {**given, "eval_strategy": "steps", "eval_steps": 1, "eval_dataset": plain.train_dataset, "sample_steps": 1},
    )
    expected, result = everything(plain), everything(watched)
    assert [name for name in expected if not torch.equal(expected[name], result[name])] == []


def test_each_network_is_saved_by_itself(tmp_path: Path) -> None:
    trainer = run(tmp_path, {"ema_decay": 0.8})
    trainer.save_model(str(tmp_path / "final"))
    generator, critic = tiny_generator(3), tiny_critic(3)
    generator.load_state_dict(load_file(tmp_path / "final" / "generator.safetensors"))
    critic.load_state_dict(load_file(tmp_path / "final" / "critic.safetensors"))
    assert trainer.ema_generator is not None
    z = torch.randn(4, 3)
    assert torch.equal(generator(z), trainer.ema_generator(z))
    assert not torch.equal(generator(z), trainer.generator(z))
    assert torch.equal(critic(z[:, :2]), trainer.critic(z[:, :2]))


def test_tied_and_channels_last_weights_are_saved_and_resumed(tmp_path: Path) -> None:
    """safetensors takes neither as they are."""

    def networks(seed: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        torch.manual_seed(seed)
        shared = torch.nn.Linear(6, 6)
        generator = torch.nn.Sequential(
            torch.nn.Linear(3, 6), shared, torch.nn.Tanh(), shared, torch.nn.Unflatten(1, (1, 2, 3))
        )
        critic = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8, 1)
        )
        return generator, critic.to(memory_format=torch.channels_last)

    results = []
    data = torch.randn(16, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    for resume in (False, True):
        given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "train_dataset": data, "ema_decay": 0.5}
        trainer = wgan_trainer(tmp_path, *networks(int(resume)), **given)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        results.append(everything(trainer))
    assert [name for name in results[0] if not torch.equal(results[0][name], results[1][name])] == []


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_diverged_weights_are_not_saved(tmp_path: Path, strategy: str) -> None:
    """Neither in a checkpoint, nor at the end."""
    data = points()
    data[7] = float("nan")
    trainer = wgan_trainer(tmp_path, train_dataset=data, max_steps=6, save_strategy=strategy, save_steps=5)

    def train_and_save() -> None:
        trainer.train()
        trainer.save_model(str(tmp_path / "final"))

    step = 5 if strategy == "steps" else 6
    with pytest.raises(FloatingPointError, match=rf"is not finite after step {step}, so it is not saved.*contain NaN"):
        train_and_save()
    assert not [*tmp_path.rglob("*.safetensors")]


def test_incomplete_checkpoint_is_passed_over(tmp_path: Path) -> None:
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    wgan_trainer(tmp_path, **given).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    trainer = wgan_trainer(tmp_path, **given)
    with pytest.warns(UserWarning, match="checkpoint-4 has no trainer_state.json: resuming from checkpoint-2 instead"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
