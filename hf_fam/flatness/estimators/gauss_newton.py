"""Gauss-Newton probes: a non-negative kappa of a hidden layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ...calculus.autograd_graph import is_product
from ...calculus.derivatives import gradients, quadratic_form, range_scale, second_derivatives, vector_products
from ...layer.feature_layer import FeatureLayer
from ..batch import Batch
from ..coupling import calls_are_nested
from .base import Choice
from .random_probes import RandomProbes


class GaussNewtonProbes(RandomProbes):
    """Random probes of kappa with the Gauss-Newton matrix, which is never negative for a convex loss."""

    name = "gauss_newton"
    default_strength = 0.001
    needs_logits = True

    def __init__(self, choice: Choice) -> None:
        if choice.head is None:
            raise ValueError(
                f'estimator="{self.name}" needs the layer into the logits, and none was found: use "hessian".'
            )
        super().__init__(choice)

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Take the layers below the head."""
        return head is not None and head is not layer

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch whose logits are not what the Gauss-Newton matrix is built on."""
        assert self.choice.head is not None
        _check_logits(batch, self.layer, self.choice.head)

    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """See `gauss_newton_probe`."""
        return gauss_newton_probe(
            batch.loss, batch.pre_activations, batch.logits, directions, weights_only=batch.weights_only
        )


def _check_logits(batch: Batch, layer: FeatureLayer, head: FeatureLayer) -> None:
    """Refuse what is no layer into the logits, on which the Gauss-Newton matrix is built.

    Args:
        batch: after its forward pass.
        layer: the feature layer.
        head: what was taken for the layer into the logits.

    Raises:
        ValueError: names the head and the remedy.
    """
    problem = None
    if not batch.logits:
        problem = "was not called in the forward pass"
    elif calls_are_nested(batch.logits, batch.logits):
        problem = "is called several times, one call feeding the next"
    elif not batch.graph.leads_to(batch.logits):
        problem = "does not lead to the loss"
    elif any(map(is_product, batch.graph.above(batch.logits))):
        problem = "has further layers, or products, above it"
    if problem:
        raise ValueError(
            f"estimator=\"gauss_newton\" takes '{head.name}' for the layer into the logits, but it "
            f'{problem}: use "hessian", or call the layer into the logits "head" or "classifier".'
        )
    if batch.graph.passes_by(batch.logits):
        warnings.warn(
            f"Part of the loss depends on layer '{layer.name}' without passing through "
            f"'{head.name}' (the auxiliary loss of a router, a second head): estimator=\"gauss_newton\" "
            f'leaves the curvature of that part out; "hessian" has all of it.',
            stacklevel=5,
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
