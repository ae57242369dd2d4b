"""Head FAM for any training loop: the term enters at the head, in the backward pass.

The head's output passes through an identity whose backward receives g = dL/dz with every scale of the loss inside
(accumulation, token weights, mixed precision), reads the item weights off it (docs/mathematics.md, closed form) and
adds the gradient of ``lambda * kappa`` to those of the logits, the features and the weight. Nothing is differentiated
twice, so it works in compiled models and in loops whose loss cannot be reached.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .feature_layer import AUTO, FeatureLayer
from .flatness.curvature import wide
from .flatness.heads import softmax_flatness_and_derivatives, weights_from_gradient


def attach(model: nn.Module, strength: float, layer: str | nn.Module = AUTO) -> AttachedFlatness:
    """Train the head's relative flatness from now on, in whatever loop the model is trained.

    For softmax cross-entropy with hard labels, under any reduction, item or class weights, ignored and shifted labels.
    What the loss is cannot be proven from its gradient, so unlike `RelativeFlatness` this takes your word for it: label
    smoothing, soft labels and focal loss would get other item weights. Attach before the model is compiled.

    Args:
        model: the model that is trained.
        strength: lambda, at least 0; can be changed later (``attached.strength = ...``).
        layer: the layer into the logits, see `RelativeFlatness`.

    Returns:
        A handle with the last kappa and ``detach()``.

    Raises:
        ValueError: a negative strength, or no such layer.
        TypeError: the layer is of a kind that is not supported.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> attached = attach(model, strength=0.01)
        >>> loss = nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
        >>> loss.backward()  # your loop, as it is
        >>> attached.kappa() > 0
        True
        >>> attached.detach()
    """
    return AttachedFlatness(FeatureLayer(model, layer), strength)


class AttachedFlatness:
    """What `attach` returns; see there.

    Attributes:
        layer: the head.
    """

    def __init__(self, layer: FeatureLayer, strength: float) -> None:
        self.layer = layer
        weight = layer.weight
        self._strength = torch.zeros((), dtype=wide(weight.dtype), device=weight.device, requires_grad=True)
        self.strength = strength
        self._hook = layer.module.register_forward_hook(self._inject)

    @property
    def strength(self) -> float:
        """Lambda."""
        return float(self._strength.detach())

    @strength.setter
    def strength(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"strength={value!r}: give a finite lambda of at least 0.")
        with torch.no_grad():
            self._strength.fill_(value)

    def kappa(self) -> float:
        """kappa since the last call, summed over backward passes, in the units of what ``backward`` was called on."""
        kappa = 0.0 if self._strength.grad is None else float(self._strength.grad)
        self._strength.grad = None
        return kappa

    def detach(self) -> None:
        """Remove the hook; the model is as it was."""
        self._hook.remove()

    def _inject(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return output
        linear_map = self.layer.linear_map
        rows, features = linear_map.rows(output), linear_map.feature_rows(args[0])
        return linear_map.outputs(_Inject.apply(rows, features, linear_map.weight, self._strength))


class _Inject(torch.autograd.Function):
    """The identity on logits; its backward adds the gradient of lambda kappa."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, features: Tensor, weight: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(logits, features, weight, strength)
        return logits.view_as(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, features, weight, strength = ctx.saved_tensors
        dtype = wide(logits.dtype)
        z, g = logits.to(dtype).flatten(0, -2), gradient.to(dtype).flatten(0, -2)
        c = weights_from_gradient(g, z.softmax(-1))
        kappa, of_features, of_logits, of_weight = softmax_flatness_and_derivatives(
            features.to(dtype).flatten(0, -2), z, weight.to(dtype), c
        )
        return (
            (g + strength * of_logits).view_as(logits).to(logits.dtype),
            (strength * of_features).view_as(features).to(features.dtype),
            (strength * of_weight).to(weight.dtype),
            kappa.to(strength.dtype),
        )
