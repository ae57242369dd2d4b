"""Hessian probes: kappa of any layer under any loss, by second derivatives of the tail."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .batch import Batch
from .curvature import gradients, quadratic_form, vector_products
from .probes import RandomProbes


class HessianProbes(RandomProbes):
    """Mean of `hessian_probe` over random directions: unbiased for the exact kappa, which can be negative."""

    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """See `hessian_probe`."""
        return hessian_probe(batch.loss, batch.pre_activations, directions, weights_only=batch.weights_only)


def hessian_probe(
    loss: Tensor, pre_activations: Sequence[Tensor], directions: Sequence[Tensor], *, weights_only: bool = False
) -> Tensor:
    """One probe ``u^T (d2L/dz2) u``, differentiable to every parameter.

    Its mean over random directions ``u = W A phi`` is kappa (Adilova et al. 2023, definition 3; here in
    pre-activation space, docs/mathematics.md form b). Only the tail is differentiated twice.

    Args:
        loss: L, scalar, in the graph.
        pre_activations: z of every call of the layer, shapes ``(..., d)``.
        directions: u for every call, the same shapes, in the graph.
        weights_only: let the gradient reach W alone.

    Returns:
        A scalar in the units of the loss.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.

    Examples:
        >>> import torch
        >>> z = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> u = torch.tensor([[3.0, 1.0]])
        >>> hessian_probe((z**3).sum(), [z], [u]).item()  # 6 z u^2
        66.0
    """
    first = gradients(loss, pre_activations)
    u = [v.to(z.dtype) for v, z in zip(directions, pre_activations, strict=True)]
    constant = [v.detach() for v in u] if weights_only else u
    product = vector_products(first, pre_activations, constant, create_graph=not weights_only)
    return quadratic_form(directions, product, weights_only)
