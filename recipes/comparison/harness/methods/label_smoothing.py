"""Label smoothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from .base import Method, register


@register("label_smoothing")
class LabelSmoothing(Method):
    """A share ``amount`` of every label is spread over all classes."""

    def __init__(self, amount: float) -> None:
        self._amount = amount

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), labels, label_smoothing=self._amount)

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        return super().trainer({**arguments, "label_smoothing_factor": self._amount}, **kwargs)
