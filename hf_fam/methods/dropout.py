"""Dropout in front of the classification head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import register
from .head_inputs import HeadInputs


@register
class Dropout(HeadInputs):
    """Features that enter the head are set to 0 with some probability, besides the model's own dropout."""

    name = "dropout"
    field = "dropout_rate"
    description = "features of the head are dropped at random (Srivastava et al. 2014)"
    default = 0.2
    step = 2.0
    limits = (0.0, 1.0)

    def change(self, features: Tensor) -> Tensor:
        """Return the features after dropout."""
        return F.dropout(features, self.value)
