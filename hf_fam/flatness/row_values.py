"""Contributions of single rows of pre-activations to kappa and to the trace of the Hessian.

For training, the estimators return one scalar in the graph. Measuring needs the single contributions, for the standard
error over items. They are plain numbers without a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.derivatives import gradients, range_scale, vector_products, wide
from ..calculus.saturation import first_derivatives
from .batch import Batch
from .estimators.gauss_newton import push_forward
from .head_loss import HeadLoss
from .loss_derivatives import elementwise_curvature, weights_from_gradient, weights_from_product
from .row_blocks import row_curvatures

# Up to this many classes, probabilities are computed in float64.
_FLOAT64_CLASSES = 4096


@dataclass(frozen=True)
class RowValues:
    """Contributions of single rows, which sum up to the values of the batch.

    Attributes:
        kappa: contributions to kappa, for every call of the layer, shapes ``(...)``.
        trace: contributions to ``Tr H``, the same shapes; empty if it was not computed.
        layerwise: contributions to ``||W||_F^2 Tr H``, summed over groups, the same shapes.
        curvature: ``d2L/dz_is^2`` of every row of every call, shapes ``(..., d)``; empty for random directions.
    """

    kappa: Sequence[Tensor]
    trace: Sequence[Tensor] = ()
    layerwise: Sequence[Tensor] = ()
    curvature: Sequence[Tensor] = ()


def closed_form_rows(batch: Batch, form: HeadLoss) -> RowValues:
    """Return the exact contributions of the rows of a head, see `flatness.head_loss`.

    With h_is = c_i p_is (1 - p_is) for softmax cross-entropy: ``Tr H = sum_i ||phi_i||^2 sum_s h_is``.

    Args:
        batch: the batch after its forward pass.
        form: form of its loss, from `flatness.head_loss.recognize_calls`.

    Examples:
        >>> import torch
        >>> from hf_fam.flatness.head_loss import recognize_calls
        >>> from hf_fam.layer.linear_map import RowMap
        >>> W, phi = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> z = (0 * phi @ W.T).requires_grad_()
        >>> loss = torch.nn.functional.cross_entropy(z, torch.tensor([0]))
        >>> batch = Batch(loss, [phi], [z], RowMap(2, 2, lambda: W))
        >>> rows = closed_form_rows(batch, recognize_calls(batch))
        >>> rows.kappa[0], rows.trace[0]  # 4 * Var(+-1) and 4 * (1/4 + 1/4)
        (tensor([4.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    contributions = [
        _contributions_of_call(batch, phi, z, form)
        for phi, z in zip(batch.features, batch.pre_activations, strict=True)
    ]
    kappa, trace, curvature = zip(*contributions, strict=True)
    weight_square = batch.weight.detach().double().square().sum().to(trace[0].dtype)
    return RowValues(kappa, trace, [weight_square * t for t in trace], curvature)


def _contributions_of_call(batch: Batch, features: Tensor, z: Tensor, form: HeadLoss) -> tuple[Tensor, Tensor, Tensor]:
    is_float64 = z.device.type != "mps" and z.shape[-1] <= _FLOAT64_CLASSES
    dtype = torch.float64 if is_float64 else wide(z.dtype)
    scale = range_scale(batch.loss, [z])
    if form.item_weights == "gradient":
        (first,) = gradients(batch.loss, [z], scale, create_graph=False)
    else:
        (first,) = first_derivatives(batch.loss, [z], scale)
    phi = batch.linear_map.feature_rows(features).detach().to(dtype)
    w = batch.weight.detach().to(dtype)
    feature_squares = phi.square().sum(-1)
    if form.kind == "elementwise":
        h = elementwise_curvature(first, z).detach().to(dtype) / scale
        return feature_squares * (h @ w.square().sum(-1)), feature_squares * h.sum(-1), h
    if form.item_weights == "gradient":
        c = weights_from_gradient(first, z.detach().to(wide(z.dtype)).softmax(-1)).to(dtype) / scale
    else:
        c = weights_from_product(first, z).to(dtype) / scale
    p = z.detach().to(dtype).softmax(-1)
    # 1 - p of the most probable class, and the moments of w around its weight, as sums over the other classes. They are
    # small in a confident row, and no digits cancel.
    top = p.argmax(-1, keepdim=True)
    others = p.scatter(-1, top, 0.0)
    rest = others.sum(-1, keepdim=True)
    h = c.unsqueeze(-1) * p * (1 - p).scatter(-1, top, rest)
    squares, w_top, mean = w.square().sum(-1), w[top.squeeze(-1)], others @ w
    second = others @ squares - 2 * (mean * w_top).sum(-1) + rest.squeeze(-1) * w_top.square().sum(-1)
    kappa_of_rows = c * (second - (mean - rest * w_top).square().sum(-1))
    return feature_squares * kappa_of_rows, feature_squares * h.sum(-1), h


def exact_rows(batch: Batch, first: Sequence[Tensor], scale: Tensor | float = 1.0) -> RowValues:
    """Return the exact contributions of uncoupled rows under any loss.

    ``kappa_i = ||phi_i||^2 <W W^T, d2L/dz_i^2>``, by d Hessian-vector products of the tail.

    Args:
        batch: the batch after its forward pass; its rows must be uncoupled.
        first: dL/dz of every call, which can be differentiated again.
        scale: factor of these derivatives, see `calculus.derivatives.range_scale`.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    w = batch.weight.detach().to(wide(batch.weight.dtype))
    gram, weight_square = w @ w.T, w.square().sum()
    kappa, trace, curvature = [], [], []
    for phi, z, g in zip(batch.features, batch.pre_activations, first, strict=True):
        h, kappa_of_rows = (t / scale for t in row_curvatures(g, z, gram))
        feature_squares = batch.linear_map.norms(phi.detach().to(h.dtype)).squeeze(-1).square()
        kappa.append(feature_squares * kappa_of_rows)
        trace.append(feature_squares * h.sum(-1))
        curvature.append(h)
    return RowValues(kappa, trace, [weight_square * t for t in trace], curvature)


def hessian_rows(
    batch: Batch, first: Sequence[Tensor], directions: Sequence[Tensor], scale: Tensor | float = 1.0
) -> list[Tensor]:
    """Return ``u_t * (H u)_t`` of every row, for one direction u.

    H is the Hessian of the loss by all pre-activations.

    Args:
        batch: the batch after its forward pass.
        first: dL/dz of every call, which can be differentiated again.
        directions: u for every call, the shapes of the pre-activations.
        scale: factor of these derivatives, see `calculus.derivatives.range_scale`.

    Returns:
        Shapes ``(..., d)``.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    u = [v.detach().to(z.dtype) for v, z in zip(directions, batch.pre_activations, strict=True)]
    product = vector_products(first, batch.pre_activations, u, create_graph=False)
    return [products / scale for products in _row_products(directions, product)]


def gauss_newton_rows(batch: Batch, directions: Sequence[Tensor]) -> list[Tensor]:
    """Return ``(J u)_t * (d2L/dlogits2 J u)_t`` of every row of logits.

    See `flatness.estimators.gauss_newton.gauss_newton_probe`.

    Args:
        batch: the batch after its forward pass, with logits.
        directions: u for every call, the shapes of the pre-activations.

    Returns:
        The shapes of the logits.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    u = [v.detach().to(z.dtype) for v, z in zip(directions, batch.pre_activations, strict=True)]
    logit_directions = [v.detach() for v in push_forward(batch.logits, batch.pre_activations, u)]
    scale = range_scale(batch.loss, batch.logits)
    first = first_derivatives(batch.loss, batch.logits, scale)
    product = vector_products(first, batch.logits, logit_directions, create_graph=False)
    return [products / scale for products in _row_products(logit_directions, product)]


def _row_products(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [a.detach().to(wide(a.dtype)) * b.detach().to(wide(b.dtype)) for a, b in zip(left, right, strict=True)]
