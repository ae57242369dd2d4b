"""Generalized cross-entropy."""

from __future__ import annotations

from torch import Tensor

from .base import register
from .item_loss import ItemLoss, probability_of_label


@register
class GeneralizedCrossEntropy(ItemLoss):
    """The loss ``(1 - p^q) / q`` of the label's probability p.

    It is cross-entropy for q near 0, and the mean absolute error for q = 1, which label noise moves less.
    """

    name = "generalized_cross_entropy"
    field = "gce_q"
    description = "loss (1 - p^q) / q, which label noise moves less (Zhang and Sabuncu 2018)"
    default = 0.35
    step = 2.0
    limits = (0.0, 1.0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row."""
        # Where p is 0 in float32, its power has no gradient.
        p = probability_of_label(logits, labels).clamp_min(1e-7)
        return (1 - p**self.value) / self.value
