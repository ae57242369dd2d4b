"""A learning rate that falls in steps, for which the Trainer has no name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import MultiStepLR
from transformers import Trainer


class MilestonesMixin(Trainer):
    """A base class, to stand in front of a `Trainer`, that lowers the learning rate at given points of the training.

    Args:
        *args: arguments of the Trainer.
        lr_milestones: fractions of the training's steps; none for the Trainer's own schedule.
        lr_gamma: factor of the learning rate at each of them.
        **kwargs: arguments of the Trainer.
    """

    def __init__(self, *args: Any, lr_milestones: Sequence[float] | None, lr_gamma: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lr_milestones, self._lr_gamma = lr_milestones, lr_gamma

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule with milestones, or the Trainer's own."""
        if self._lr_milestones and self.lr_scheduler is None:
            steps = [int(fraction * num_training_steps) for fraction in self._lr_milestones]
            scheduled: Any = optimizer or self.optimizer
            scheduler: Any = MultiStepLR(scheduled, steps, gamma=self._lr_gamma)
            self.lr_scheduler = scheduler
        return super().create_scheduler(num_training_steps, optimizer)
