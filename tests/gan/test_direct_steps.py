"""accelerate's optimizer steps without its detours, and as it would step with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from support.gans import everything, wgan_trainer


def test_no_package_is_searched_in_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many searches in twelve steps as in six, after a training that fills the caches of others."""
    searched: list[str] = []
    find = importlib.util.find_spec

    def counted(name: str, *rest: Any) -> Any:
        searched.append(name)
        return find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", counted)
    counts = []
    for steps in (6, 6, 12):
        searched.clear()
        wgan_trainer(tmp_path, max_steps=steps, logging_strategy="no").train()
        counts.append(len(searched))
    assert counts[1] == counts[2]


def test_the_steps_are_those_of_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with accumulation and clipped gradients, and in a second training."""
    results = []
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr("hf_fam.gan.trainer.step_directly", lambda optimizer: None)
        trainer = wgan_trainer(
            tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, max_grad_norm=0.5,
            lr_scheduler_type="linear",
        )  # fmt: skip
        trainer.train()
        trainer.train()
        assert ("_direct_step" in repr(vars(trainer.optimizer)["step"].__wrapped__)) == direct
        results.append(everything(trainer))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
