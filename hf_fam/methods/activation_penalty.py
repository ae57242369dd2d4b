"""A penalty on the activations that enter the head, and on the head's weights."""

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
class ActivationPenalty(Method):
    """``loss + strength * (mean ||phi||^2 + ||W||^2)``, with the inputs phi and the weights W of the head.

    Baek et al. explain with it why SAM resists label noise, and put it in SAM's place. One strength serves both parts.
    """

    name = "activation_penalty"
    field = "activation_penalty"
    description = "L2 penalty on the features and weights of the head, what SAM does implicitly (Baek et al. 2024)"
    default = 1e-3

    def apply(self, trainer: Any) -> None:
        """Add the penalty to the loss."""
        refuse_without_classes(self, trainer)
        _, head = resolve_layer(trainer.model, HEAD)
        penalized = _Penalized(self.value, head, shifts_labels(trainer.model))
        trainer.compute_loss_func = penalized.loss
        trainer.add_callback(HookCallback(head, penalized.keep))
        trainer.add_callback(MustAct(self, lambda: penalized.has_acted))


class _Penalized:
    """Cross-entropy with the penalty; the features are those of the forward pass under way."""

    def __init__(self, strength: float, head: Any, is_shifted: bool) -> None:
        self._strength, self._head, self._is_shifted = strength, head, is_shifted
        self._features: Tensor | None = None
        self.has_acted = False

    def keep(self, module: nn.Module, args: Any) -> None:
        self._features = args[0] if module.training else None

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the mean over all labeled rows of a step; outside training that of cross-entropy."""
        logits = logits_of(outputs)
        rows, targets = labeled_rows(logits, labels, self._is_shifted)
        total = F.cross_entropy(rows.float(), targets, reduction="sum")
        features, self._features = self._features, None
        if features is not None:
            self.has_acted = True
            if features.shape[:-1] == logits.shape[:-1]:
                features, _ = labeled_rows(features, labels, self._is_shifted)
            sizes = features.float().pow(2).sum(-1)  # of every token, if the model pools logits
            weight = torch.as_tensor(self._head.weight).float().pow(2).sum()
            total = total + self._strength * len(targets) * (sizes.mean() + weight)
        return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
