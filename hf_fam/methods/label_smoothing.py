"""Label smoothing."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import register
from .item_loss import ItemLoss


@register
class LabelSmoothing(ItemLoss):
    """Cross-entropy with a part of every label spread over all classes."""

    name = "label_smoothing"
    field = "label_smoothing_factor"
    description = "a part of every label is spread over all classes (Szegedy et al. 2016)"
    default = 0.1
    step = 2.0
    limits = (0.0, 1.0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row."""
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.value)
