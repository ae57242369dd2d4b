"""Symmetric cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import register
from .item_loss import ItemLoss, probability_of_label

# The value of log 0 in the paper.
LOG_ZERO = -4.0


@register
class SymmetricCrossEntropy(ItemLoss):
    """Cross-entropy plus ``strength`` times the reverse cross-entropy ``-sum_k p_k log y_k``, with log 0 = -4."""

    name = "symmetric_cross_entropy"
    field = "sce_beta"
    description = "cross-entropy plus beta times the reverse one (Wang et al. 2019)"
    default = 1.0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row."""
        reverse = -LOG_ZERO * (1 - probability_of_label(logits, labels))
        return F.cross_entropy(logits, labels, reduction="none") + self.value * reverse
