"""Sharpness-aware minimization."""

from __future__ import annotations

from typing import Any

from ..inputs.packages import optional_packages
from .base import Method, put_in_front, register


@register
class SAM(Method):
    """Two passes a step, the second one at the worst point within a radius."""

    name = "sam"
    field = "sam_rho"
    description = "two passes a step, the second at the worst point nearby (Foret et al. 2021)"
    default = 0.05
    step = 2.0

    def apply(self, trainer: Any) -> None:
        """Add the second pass."""
        with optional_packages("method='sam'", "compare"):
            from .sam_trainer import SAMTrainer

        put_in_front(trainer, SAMTrainer)
        trainer.start_sam(self.value)
