"""What every row of pre-activations contributes to kappa and to the trace of the Hessian, as numbers.

The estimators return one scalar in the graph, for training. Measuring needs the contributions themselves: they give
the standard error over items. Nothing here is differentiated any further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.derivatives import gradients, range_scale, vector_products, wide
from .batch import Batch
from .estimators.gauss_newton import push_forward
from .head_loss import HeadLoss, elementwise_curvature, weights_from_gradient, weights_from_product
from .row_blocks import row_curvatures

# Up to this many classes probabilities are taken in float64, so that 1 - p of a confident model is right.
_FLOAT64_CLASSES = 4096


@dataclass(frozen=True)
class RowValues:
    """Contributions of single rows; their sums are the values of the batch.

    Attributes:
        kappa: of every call of the layer, shapes ``(...)``.
        trace: to ``Tr H``, the same shapes; empty if it was not asked for.
        layerwise: to ``||W||_F^2 Tr H``, summed over groups; the same shapes.
        curvature: ``d2L/dz_is^2`` of every row of every call, shapes ``(..., d)``; empty for random directions.
    """

    kappa: Sequence[Tensor]
    trace: Sequence[Tensor] = ()
    layerwise: Sequence[Tensor] = ()
    curvature: Sequence[Tensor] = ()


def closed_form_rows(batch: Batch, form: HeadLoss) -> RowValues:
    """Exact contributions of the rows of a head, see `flatness.head_loss`.

    With h_is = c_i p_is (1 - p_is) for softmax cross-entropy: ``Tr H = sum_i ||phi_i||^2 sum_s h_is``.

    Args:
        batch: its loss was recognized as ``form``.
        form: what `flatness.head_loss.recognize_calls` returned.

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
    found = [
        _closed_form_call(batch, phi, z, form) for phi, z in zip(batch.features, batch.pre_activations, strict=True)
    ]
    kappa, trace, curvature = zip(*found, strict=True)
    square = batch.weight.detach().double().square().sum().to(trace[0].dtype)
    return RowValues(kappa, trace, [square * t for t in trace], curvature)


def _closed_form_call(batch: Batch, features: Tensor, z: Tensor, form: HeadLoss) -> tuple[Tensor, Tensor, Tensor]:
    exact = z.device.type != "mps" and z.shape[-1] <= _FLOAT64_CLASSES
    dtype = torch.float64 if exact else wide(z.dtype)
    scale = range_scale(batch.loss, [z])
    (first,) = gradients(batch.loss, [z], scale, create_graph=form.item_weights != "gradient")
    phi = batch.linear_map.feature_rows(features).detach().to(dtype)
    w = batch.weight.detach().to(dtype)
    squares = phi.square().sum(-1)
    if form.kind == "elementwise":
        h = elementwise_curvature(first, z).detach().to(dtype) / scale
        return squares * (h @ w.square().sum(-1)), squares * h.sum(-1), h
    if form.item_weights == "gradient":
        c = weights_from_gradient(first, z.detach().to(wide(z.dtype)).softmax(-1)).to(dtype) / scale
    else:
        c = weights_from_product(first, z).to(dtype) / scale
    p = z.detach().to(dtype).softmax(-1)
    h = c.unsqueeze(-1) * p * (1 - p)
    w = w - w.mean(0)  # kappa does not change, cancellation becomes harmless
    spread = c * (p @ w.square().sum(-1) - (p @ w).square().sum(-1))
    return squares * spread, squares * h.sum(-1), h


def exact_rows(batch: Batch, first: Sequence[Tensor], scale: Tensor | float = 1.0) -> RowValues:
    """Exact contributions of uncoupled rows under any loss: d Hessian-vector products of the tail.

    ``kappa_i = ||phi_i||^2 <W W^T, d2L/dz_i^2>``.

    Args:
        batch: after its forward pass; no row reacts to another.
        first: dL/dz of every call, which can be differentiated again.
        scale: which they were multiplied by, see `curvature.range_scale`.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    w = batch.weight.detach().to(wide(batch.weight.dtype))
    gram, square = w @ w.T, w.square().sum()
    kappa, trace, curvature = [], [], []
    for phi, z, g in zip(batch.features, batch.pre_activations, first, strict=True):
        h, spread = (t / scale for t in row_curvatures(g, z, gram))
        squares = batch.linear_map.norms(phi.detach().to(h.dtype)).squeeze(-1).square()
        kappa.append(squares * spread)
        trace.append(squares * h.sum(-1))
        curvature.append(h)
    return RowValues(kappa, trace, [square * t for t in trace], curvature)


def hessian_rows(
    batch: Batch, first: Sequence[Tensor], directions: Sequence[Tensor], scale: Tensor | float = 1.0
) -> list[Tensor]:
    """``u_t * (H u)_t`` of every row, for one direction u and the Hessian H of the loss by all pre-activations.

    Args:
        batch: after its forward pass.
        first: dL/dz of every call, which can be differentiated again.
        directions: u for every call, the shapes of the pre-activations.
        scale: which the derivatives were multiplied by, see `curvature.range_scale`.

    Returns:
        Shapes ``(..., d)``.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    u = [v.detach().to(z.dtype) for v, z in zip(directions, batch.pre_activations, strict=True)]
    product = vector_products(first, batch.pre_activations, u, create_graph=False)
    return [value / scale for value in _products(directions, product)]


def gauss_newton_rows(batch: Batch, directions: Sequence[Tensor]) -> list[Tensor]:
    """``(J u)_t * (d2L/dlogits2 J u)_t`` of every row of logits, see `flatness.gauss_newton_probe`.

    Args:
        batch: after its forward pass, with logits.
        directions: u for every call, the shapes of the pre-activations.

    Returns:
        The shapes of the logits.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    u = [v.detach().to(z.dtype) for v, z in zip(directions, batch.pre_activations, strict=True)]
    moved = [v.detach() for v in push_forward(batch.logits, batch.pre_activations, u)]
    scale = range_scale(batch.loss, batch.logits)
    first = gradients(batch.loss, batch.logits, scale)
    product = vector_products(first, batch.logits, moved, create_graph=False)
    return [value / scale for value in _products(moved, product)]


def _products(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [a.detach().to(wide(a.dtype)) * b.detach().to(wide(b.dtype)) for a, b in zip(left, right, strict=True)]
