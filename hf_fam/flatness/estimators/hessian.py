"""Hessian probes: kappa of any layer under any loss, by second derivatives of the tail."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...calculus.derivatives import inner, quadratic_form, range_scale, vector_products
from ...calculus.saturation import first_derivatives
from ...layer.feature_layer import FeatureLayer
from ..batch import Batch
from .random_probes import RandomProbes


class HessianProbes(RandomProbes):
    """Random probes of the exact kappa, for any layer and loss; can be negative."""

    name = "hessian"
    default_strength = 0.001

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Return True for the layers of a model without a known head."""
        return head is None

    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """Return the quadratic form for one direction, see `hessian_probe`.

        Raises:
            ValueError: ``gradient="weights_only"``, and one call of the layer feeds another.
        """
        if batch.weights_only and self.coupling_finder.has_nested_calls:
            raise ValueError(
                'gradient="weights_only" is not possible with estimator="hessian" if one call of the feature layer '
                'feeds the next: use gradient="full" or estimator="gauss_newton".'
            )
        return hessian_probe(batch.loss, batch.pre_activations, directions, weights_only=batch.weights_only)


def hessian_probe(
    loss: Tensor, pre_activations: Sequence[Tensor], directions: Sequence[Tensor], *, weights_only: bool = False
) -> Tensor:
    """Return one probe ``u^T (d2L/dz2) u``, differentiable to every parameter.

    Its mean over random directions ``u = W A phi`` is kappa (Adilova et al. 2023, definition 3; here in
    pre-activation space, docs/estimators.md). Only the tail is differentiated twice.

    If one call of the layer feeds another, its direction changes the features of the other, and so the other's
    direction. Then ``2 sum_{k<j} (dL/dz_j)^T (du_j/dz_k) u_k`` is added, and all derivatives are total ones.

    Args:
        loss: L, a scalar in the graph.
        pre_activations: z of every call of the layer, shapes ``(..., d)``.
        directions: u for every call, the same shapes, in the graph of W and phi.
        weights_only: let the gradient reach W alone; not possible if one call feeds another.

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
    first = first_derivatives(loss, pre_activations, scale)
    u = [v.to(z.dtype) for v, z in zip(directions, pre_activations, strict=True)]
    constant = [v.detach() for v in u] if weights_only else u
    product = vector_products(first, pre_activations, constant, create_graph=not weights_only)
    probe = quadratic_form(directions, product, weights_only)
    if len(pre_activations) == 1 or weights_only:
        return probe / scale
    for direction, pulled_back in zip(u, vector_products(u, pre_activations, first), strict=True):
        probe = probe + 2 * inner(pulled_back, direction)
    return probe / scale
