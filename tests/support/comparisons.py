"""A comparison at its smallest: a linear classifier of points in two clusters a class, trained in milliseconds."""

from __future__ import annotations

import functools
import gc
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

# Every training begins with a full garbage collection: what the imports left behind need not be looked at each time.
gc.freeze()

FEATURES = 6


class PointClassifier(nn.Module):
    """A linear classifier."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classifier = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(x)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


def points(count: int, seed: int = 0, classes: int = 3, spread: float = 1.5) -> list[dict[str, Any]]:
    """Points around a center for each class, and their classes."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((classes, FEATURES))
    return [
        {
            "x": torch.tensor(centers[k % classes] + spread * random.standard_normal(FEATURES), dtype=torch.float32),
            "labels": k % classes,
        }
        for k in range(count)
    ]


def point_trainer(seed: int, train: int = 60, validation: int = 0, **changes: Any) -> Trainer:
    """A Trainer of a fresh classifier."""
    args = TrainingArguments(
        **{
            "output_dir": tempfile.gettempdir(),
            "num_train_epochs": 2, "per_device_train_batch_size": 20, "per_device_eval_batch_size": 200,
            "learning_rate": 3e-2, "report_to": "none", "use_cpu": True, "seed": seed, "dataloader_pin_memory": False,
            **changes,
        },
    )  # fmt: skip
    return Trainer(
        model=PointClassifier(),
        args=args,
        train_dataset=points(train),
        eval_dataset=points(validation, seed=1) if validation else None,
    )


def make_trainer(**changes: Any) -> Callable[[int], Trainer]:
    """A function of the seed, which other processes can import."""
    return functools.partial(point_trainer, **changes)
