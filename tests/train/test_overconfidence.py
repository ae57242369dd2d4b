"""The warning about a head that escapes the flatness term by growing confident."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_fam import FAMTrainer
from support.tiny import arguments


class Head(nn.Module):
    """A linear head on given features."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def items(noise: float) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(48) % 3
    x = 2 * torch.eye(4)[y] + 0.3 * torch.randn(48, 4, generator=draw)
    wrong = torch.rand(48, generator=draw) < noise
    y = torch.where(wrong, torch.randint(3, (48,), generator=draw), y)
    return [{"features": row, "labels": int(label)} for row, label in zip(x, y, strict=True)]


def messages_of(path: Path, noise: float = 0.0, **given: Any) -> list[str]:
    torch.manual_seed(0)
    settings = {"max_steps": 400, "logging_steps": 10, "learning_rate": 0.1, "per_device_train_batch_size": 48}
    args = arguments(path, **{**settings, "lr_scheduler_type": "constant", **given})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FAMTrainer(model=Head(), args=args, train_dataset=items(noise)).train()
    return [str(w.message) for w in caught if "overconfident" in str(w.message)]


def test_it_is_said_once(tmp_path: Path) -> None:
    (message,) = messages_of(tmp_path, fam_lambda=0.003, fam_smoothing=0.0)
    assert message.startswith("'classifier' is growing overconfident: its kappa fell from ")
    assert "fam_smoothing=0.1" in message and "\n" not in message


@pytest.mark.parametrize(
    "given",
    [
        {"fam_lambda": 0.003},
        {"noise": 0.4, "fam_lambda": 0.003, "fam_smoothing": 0.0},
        {"fam_lambda": 0.0},
    ],
    ids=["smoothed by default", "labels that overlap", "plain"],
)
def test_it_is_not_said(tmp_path: Path, given: dict[str, Any]) -> None:
    assert messages_of(tmp_path, **given) == []
