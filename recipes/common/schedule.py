"""A learning rate that falls in steps, which the Trainer has no name for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from transformers import Trainer


class Milestones(Trainer):
    """Multiplies the rate by ``lr_gamma`` at each of ``lr_milestones``, fractions of the training's steps."""

    def __init__(self, *args: Any, lr_milestones: Sequence[float] | None, lr_gamma: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lr_milestones, self._lr_gamma = lr_milestones, lr_gamma

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        if self._lr_milestones and self.lr_scheduler is None:
            steps = [int(fraction * num_training_steps) for fraction in self._lr_milestones]
            self.lr_scheduler = MultiStepLR(optimizer or self.optimizer, steps, gamma=self._lr_gamma)
        return super().create_scheduler(num_training_steps, optimizer)
