"""Mixup of images, or of the features that enter the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer.finding import HEAD, resolve_layer
from .base import Method, MustAct, refuse_without_classes, register
from .head_inputs import HookCallback
from .item_loss import labeled_rows, logits_of, shifts_labels


@register
class Mixup(Method):
    """Convex combinations of two items of a batch, and of their losses.

    Pixels are mixed if the model reads images (Zhang et al. 2018). Otherwise the features that enter the head are
    mixed, as in manifold mixup (Verma et al. 2019). The weight is drawn from Beta(strength, strength), once a batch.
    """

    name = "mixup"
    field = "mixup_alpha"
    description = "items of a batch and their labels are mixed (Zhang et al. 2018; Verma et al. 2019)"
    default = 0.2
    step = 4.0

    def apply(self, trainer: Any) -> None:
        """Add the mixing and its loss."""
        refuse_without_classes(self, trainer)
        mixing = _Mixing(self.value, shifts_labels(trainer.model))
        trainer.compute_loss_func = mixing.loss
        if getattr(trainer.model, "main_input_name", None) == "pixel_values":
            trainer.add_callback(HookCallback(trainer.model, mixing.mix_pixels, with_kwargs=True))
        _, head = resolve_layer(trainer.model, HEAD)
        trainer.add_callback(HookCallback(head, mixing.mix_features))
        trainer.add_callback(MustAct(self, lambda: mixing.is_mixed))


class _Mixing:
    """Partners and weight of the batch that is under way."""

    def __init__(self, alpha: float, is_shifted: bool) -> None:
        self._alpha, self._is_shifted = alpha, is_shifted
        self._partners: Tensor | None = None
        self._weight = 1.0
        self.is_mixed = False

    def mix_pixels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not module.training or "pixel_values" not in kwargs:
            return None
        return args, {**kwargs, "pixel_values": self._mix(kwargs["pixel_values"])}

    def mix_features(self, module: nn.Module, args: Any) -> Any:
        if not module.training or self._partners is not None:  # the pixels are mixed already
            return None
        return (self._mix(args[0]), *args[1:])

    def _mix(self, values: Tensor) -> Tensor:
        self._weight = float(torch.distributions.Beta(self._alpha, self._alpha).sample())
        self._partners = torch.randperm(len(values))
        return self._weight * values + (1 - self._weight) * values[self._partners.to(values.device)]

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the mixed cross-entropy of the batch; outside training the plain one."""
        partners, self._partners = self._partners, None
        parts = [(1.0, labels)]
        if partners is not None:
            self.is_mixed = True
            parts = [(self._weight, labels), (1 - self._weight, labels[partners.to(labels.device)])]
        total = torch.zeros((), device=labels.device)
        for weight, targets in parts:
            rows, classes = labeled_rows(logits_of(outputs), targets, self._is_shifted)
            total = total + weight * F.cross_entropy(rows.float(), classes, reduction="sum")
        number = labeled_rows(logits_of(outputs), labels, self._is_shifted)[1].numel()
        return total / (number if num_items_in_batch is None else num_items_in_batch)
