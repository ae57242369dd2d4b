"""What a regime is: settings, a model, and the items that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import default_data_collator

from ..tasks import IMAGES, Examples, Task

Items = list[dict[str, Any]]


@dataclass(frozen=True)
class CommonSettings:
    """Settings of every regime.

    Attributes:
        learning_rate: the middle of the grids.
        epochs: number of epochs.
        batch_size: examples in a step.
        weight_decay: of every method but ``weight_decay``.
        warmup: part of the steps in which the learning rate rises.
        fam: the Trainer's ``fam_`` arguments, such as ``{layer: representation, estimator: gauss_newton}``.
    """

    learning_rate: float = 1e-3
    epochs: float = 10
    batch_size: int = 32
    weight_decay: float = 0.0
    warmup: float = 0.1
    fam: dict[str, Any] = field(default_factory=dict)


class Regime(ABC):
    """One way in which a model is trained."""

    Settings: ClassVar[type[CommonSettings]]

    def reads(self, task: Task) -> bool:
        """Return True if the regime can read a task."""
        return task.name in IMAGES

    def arguments(self, settings: Any) -> dict[str, Any]:
        """Return further arguments of the Trainer."""
        return {}

    def collator(self) -> Any:
        """Return what makes a batch of items."""
        return default_data_collator

    @abstractmethod
    def items(self, examples: Examples, settings: Any, cache: Path) -> Items:
        """Return examples as the model reads them."""

    @abstractmethod
    def model(self, train: Items, classes: int, settings: Any) -> nn.Module:
        """Return a model with a fresh head; the seed is set.

        Args:
            train: the training items, for their shapes.
            classes: number of classes.
            settings: of the regime.
        """
