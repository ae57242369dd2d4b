"""Hessian probes: kappa of any layer under any loss, by second derivatives of the tail."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...calculus.derivatives import gradients, inner, quadratic_form, range_scale, vector_products
from ...layer.feature_layer import FeatureLayer
from ..batch import Batch
from .random_probes import RandomProbes


class HessianProbes(RandomProbes):
    """Random probes of the exact kappa, which can be negative; for any layer and loss."""

    name = "hessian"
    default_strength = 0.001

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Take layers of a model without a known head."""
        return head is None

    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """See `hessian_probe`.

        Raises:
            ValueError: the gradient of the weights alone is asked for and one call of the layer feeds another.
        """
        if batch.weights_only and self.coupling.nested:
            raise ValueError(
                'gradient="weights_only" is not possible with estimator="hessian" where one call of the feature layer '
                'feeds the next: use gradient="full", or estimator="gauss_newton".'
            )
        return hessian_probe(batch.loss, batch.pre_activations, directions, weights_only=batch.weights_only)


def hessian_probe(
    loss: Tensor, pre_activations: Sequence[Tensor], directions: Sequence[Tensor], *, weights_only: bool = False
) -> Tensor:
    """One probe ``u^T (d2L/dz2) u``, differentiable to every parameter.

    Its mean over random directions ``u = W A phi`` is kappa (Adilova et al. 2023, definition 3; here in
    pre-activation space, docs/mathematics.md form b). Only the tail is differentiated twice.

    Where one call of the layer feeds another, its direction moves the other's features and so the other's direction:
    ``2 sum_{k<j} (dL/dz_j)^T (du_j/dz_k) u_k`` is added, and derivatives are total ones.

    Args:
        loss: L, scalar, in the graph.
        pre_activations: z of every call of the layer, shapes ``(..., d)``.
        directions: u for every call, the same shapes, in the graph: of W, of phi and so of the calls below.
        weights_only: let the gradient reach W alone; not where calls feed one another.

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
    scale = range_scale(loss, pre_activations)
    first = gradients(loss, pre_activations, scale)
    u = [v.to(z.dtype) for v, z in zip(directions, pre_activations, strict=True)]
    constant = [v.detach() for v in u] if weights_only else u
    product = vector_products(first, pre_activations, constant, create_graph=not weights_only)
    value = quadratic_form(directions, product, weights_only)
    if len(pre_activations) == 1 or weights_only:
        return value / scale
    for moved, pulled in zip(u, vector_products(u, pre_activations, first), strict=True):
        value = value + 2 * inner(pulled, moved)
    return value / scale
