"""Gauss-Newton probes: a non-negative kappa of a hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calculus.derivatives import gradients, quadratic_form, range_scale, second_derivatives, vector_products
from .batch import Batch
from .probes import RandomProbes


class GaussNewtonProbes(RandomProbes):
    """Mean of `gauss_newton_probe` over random directions: never negative where the loss is convex."""

    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """See `gauss_newton_probe`."""
        return gauss_newton_probe(
            batch.loss, batch.pre_activations, batch.logits, directions, weights_only=batch.weights_only
        )


def gauss_newton_probe(
    loss: Tensor,
    pre_activations: Sequence[Tensor],
    logits: Sequence[Tensor],
    directions: Sequence[Tensor],
    *,
    weights_only: bool = False,
) -> Tensor:
    """One probe ``(J u)^T (d2L/dlogits2) (J u)``, differentiable to every parameter; J is the tail's Jacobian.

    Its mean over random directions ``u = W A phi`` is kappa with the Hessian replaced by the Gauss-Newton matrix:
    never negative where the loss is convex in the logits, and equal to kappa where the tail is piecewise linear.
    With several calls of the layer J is the total derivative; where one call feeds another, that leaves out the second
    derivative of the logits with respect to W, so the probe is that of the Gauss-Newton matrix of W.

    Args:
        loss: L, scalar, in the graph.
        pre_activations: z of every call of the feature layer, shapes ``(..., d)``.
        logits: what every call of the head returned, in the graph between z and the loss.
        directions: u for every call of the feature layer, in the graph.
        weights_only: let the gradient reach W alone.

    Returns:
        A scalar in the units of the loss.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.

    Examples:
        >>> import torch
        >>> z = torch.tensor([[0.5]], requires_grad=True)
        >>> logits = z.tanh()
        >>> u = torch.ones(1, 1)
        >>> probe = gauss_newton_probe((logits**2).sum(), [z], [logits], [u])
        >>> bool(torch.isclose(probe, 2 * (1 - z.tanh() ** 2).squeeze() ** 2))
        True
    """
    u = [v.to(z.dtype) for v, z in zip(directions, pre_activations, strict=True)]
    moved = push_forward(logits, pre_activations, [v.detach() for v in u] if weights_only else u)
    scale = range_scale(loss, logits)
    product = vector_products(gradients(loss, logits, scale), logits, moved)
    if not weights_only:
        return quadratic_form(moved, product, weights_only=False) / scale
    # J^T (H J u): back below the tail, so that W acts in u alone.
    cotangents = [p.detach() for p in product]
    pulled = torch.autograd.grad(logits, pre_activations, cotangents, retain_graph=True, materialize_grads=True)
    return quadratic_form(directions, pulled, weights_only=True) / scale


def push_forward(outputs: Sequence[Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    """J u for the Jacobian of ``outputs`` with respect to ``inputs``, in the graph.

    The forward pass is over, so this is the derivative of ``v -> J^T v`` (linear in v) instead of a dual number.
    """
    v = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    with second_derivatives():
        pulled = torch.autograd.grad(outputs, inputs, v, create_graph=True, materialize_grads=True)
    return vector_products(pulled, v, tangents)
