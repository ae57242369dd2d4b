"""How many kernels a training step launches beside plain training; on a GPU that is what a small model's step costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from support.card import LaunchCounter
from support.tiny import classified, fam_trainer, tiny_bert

FEATURES, STEPS = 16, 8


class StoredFeatures(nn.Module):
    """A linear classifier of features that are computed once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Linear(FEATURES, 3)

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def bert() -> nn.Module:
    return tiny_bert(dropout=0.0)


def frozen_bert() -> nn.Module:
    model = bert()
    model.bert.requires_grad_(False)
    return model


def features() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(24, FEATURES, generator=generator).tolist()
    return [{"features": row, "labels": k % 3} for k, row in enumerate(rows)]


# The most kernels of the term, in a step in which nothing is looked at.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[dict[str, Any]]], dict[str, Any], int]] = {
    "head": (bert, classified, {}, 29),
    "frozen backbone": (frozen_bert, classified, {}, 36),
    "stored features": (StoredFeatures, features, {}, 35),
    "pooler": (bert, classified, {"fam_layer": "representation"}, 118),
    "perturbation": (bert, classified, {"fam_layer": "representation", "fam_estimator": "perturbation"}, 69),
}


class StepCounter(TrainerCallback):
    """Kernels of every step."""

    def __init__(self, counter: LaunchCounter) -> None:
        self._counter = counter
        self.steps: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._counter.launches.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(self._counter.launches.total())


def launches(folder: Path, model: nn.Module, data: list[dict[str, Any]], **given: Any) -> list[int]:
    with LaunchCounter() as counter:
        steps = StepCounter(counter)
        trainer = fam_trainer(
            folder, model, train_dataset=data, callbacks=[steps], max_steps=STEPS, logging_steps=100, **given
        )
        trainer.train()
    return steps.steps


@pytest.mark.parametrize("name", CASES)
def test_launches_of_the_term(name: str, tmp_path: Path) -> None:
    make, data, options, most = CASES[name]
    plain = launches(tmp_path / "plain", make(), data(), fam_lambda=0.0)
    fam = launches(tmp_path / "fam", make(), data(), **options)
    added = min(f - p for f, p in zip(fam[3:], plain[3:], strict=True))
    assert 0 < added <= most
