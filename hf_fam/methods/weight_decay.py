"""Weight decay."""

from __future__ import annotations

from typing import Any

from .base import Method, register


@register
class WeightDecay(Method):
    """The optimizer's weight decay, which is decoupled in AdamW."""

    name = "weight_decay"
    field = "weight_decay"
    description = "the optimizer's weight decay (Loshchilov and Hutter 2019)"
    default = 0.1

    def apply(self, trainer: Any) -> None:
        """Set the weight decay."""
        trainer.args.weight_decay = self.value
