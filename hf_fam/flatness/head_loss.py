"""Closed forms of kappa for the classification head, by the form of the loss.

Softmax cross-entropy: with p_i = softmax(z_i) and item weights c_i (softmax_head.py),

    kappa = sum_i c_i ||phi_i||^2 Var_{k~p_i}(w_k)

An elementwise loss, a sum over outputs (sigmoid cross-entropy, squared error, Huber, Poisson ...), with
h_ik = d2L/dz_ik^2:

    kappa = sum_ik h_ik ||phi_i||^2 ||w_k||^2

With smoothing eps, ``h = c q (1 - q)`` with ``q = (1 - eps) p + eps / 2`` for sigmoid cross-entropy. A squared error
has a constant curvature, which smoothing leaves alone.

The labels enter only through c and h, which are computed from the loss itself. They contain reductions, ignored and
shifted labels, class weights, label smoothing, ``num_items_in_batch`` and any scale of the loss.
Source: Adilova et al. 2023 (arXiv 2307.02337), section 3, for the definition; docs/closed-form.md for the derivation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..calculus.autograd_graph import TailGraph
from ..calculus.derivatives import gradients, range_scale, rounding_error, vector_products, wide
from ..calculus.saturation import first_derivatives
from .batch import Batch
from .form_checks import elementwise_is_off
from .graph_weights import has_sigmoid_loss, sigmoid_weights, softmax_weights
from .loss_derivatives import (
    checked_weights,
    elementwise_curvature,
    rounding_to_zero,
    row_scales,
    safe_ratio,
    tolerance_of,
    weights_from_gradient,
    weights_from_product,
    weights_in_chunks,
)
from .loss_graph import is_cross_entropy
from .smoothing import UndefinedSmoothing
from .vocabulary import is_large


class NoClosedForm(ValueError):
    """The loss has no closed form as a function of the logits; the message says why."""


def recognize_calls(batch: Batch, smoothing: float = 0.0) -> HeadLoss | None:
    """Return the form of the loss for all calls of the head, see `recognize`.

    Calls on which the loss has no curvature are ignored.

    Raises:
        NoClosedForm: the loss has no closed form, or different ones for different calls.
        ValueError: smoothing is not defined for the loss.
    """
    if batch.linear_map.groups > 1:
        raise NoClosedForm("the head is a grouped convolution")
    return recognize_logits(batch, batch.pre_activations, smoothing)


def recognize_logits(batch: Batch, calls: Sequence[Tensor], smoothing: float = 0.0) -> HeadLoss | None:
    """Return the form of the loss as a function of the logits of all calls of the head, see `recognize_calls`.

    Args:
        batch: the batch after its forward pass.
        calls: z of every call of the head.
        smoothing: eps.
    """
    _refuse_coupled_calls(batch, calls)
    head_losses = {recognize(batch.loss, z, batch.graph, smoothing) for z in calls} - {None}
    if len(head_losses) > 1:
        raise NoClosedForm(f"the head is called {len(calls)} times, with different losses")
    return head_losses.pop() if head_losses else None


def _refuse_coupled_calls(batch: Batch, calls: Sequence[Tensor]) -> None:
    """Refuse coupled calls, which have no closed form."""
    if len(calls) == 1:
        return
    first = first_derivatives(batch.loss, calls, range_scale(batch.loss, calls))
    for k, z in enumerate(calls):
        vectors = [torch.zeros_like(other) for other in calls]
        generator = torch.Generator(z.device).manual_seed(0)
        vectors[k] = torch.randn(z.shape, generator=generator, device=z.device).to(z.dtype)
        products = vector_products(first, calls, vectors, create_graph=False)
        threshold = rounding_error(products)
        if any(h.abs().max() > threshold for j, h in enumerate(products) if j != k):
            raise NoClosedForm(
                f"the head is called {len(calls)} times in a forward pass and the loss couples the calls"
            )


@dataclass(frozen=True)
class HeadLoss:
    """Form of the loss as a function of the logits.

    Attributes:
        kind: ``"softmax"``, ``"elementwise"`` or, with smoothing only, ``"sigmoid"``.
        item_weights: how to compute c: from a Hessian ``"product"``, from the ``"gradient"`` (hard labels only) or,
            with smoothing only, from the ``"graph"``.
        has_trained_weights: c depends on parameters, such as a learned uncertainty, so kappa has a gradient by them.
    """

    kind: Literal["softmax", "elementwise", "sigmoid"]
    item_weights: Literal["product", "gradient", "graph"] = "product"
    has_trained_weights: bool = False


def recognize(loss: Tensor, logits: Tensor, graph: TailGraph | None = None, smoothing: float = 0.0) -> HeadLoss | None:
    """Return the form of a loss, by one Hessian-vector product with a random vector.

    The gradient alone is no proof: that of focal loss has the direction of cross-entropy's.

    Args:
        loss: a scalar in the graph.
        logits: z, shape ``(..., C)``.
        graph: the operations between them, if they are known already.
        smoothing: eps.

    Returns:
        The form. None if the loss has no curvature, for example without labels or far from Huber's targets, or one
        that is not finite.

    Raises:
        NoClosedForm: the loss is neither softmax cross-entropy nor elementwise.
        ValueError: smoothing is not defined for the loss.

    Examples:
        >>> import torch
        >>> z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        >>> recognize(torch.nn.functional.cross_entropy(z, torch.tensor([0, 1, 2, 0])), z).kind
        'softmax'
        >>> recognize(torch.nn.functional.mse_loss(z, torch.zeros(4, 3, dtype=torch.float64)), z).kind
        'elementwise'
    """
    classes = logits.shape[-1]
    graph = graph or TailGraph(loss, [logits])
    if is_large(classes) and is_cross_entropy(loss, logits, graph):
        return HeadLoss("softmax", "gradient")
    is_trained = graph.has_trained_factors([logits])
    scale = range_scale(loss, [logits])
    (first,) = first_derivatives(loss, [logits], scale)
    generator = torch.Generator(logits.device).manual_seed(0)
    every = torch.randn(logits.shape, generator=generator, device=logits.device).to(logits.dtype)
    # Leaving out the most probable class avoids cancellation when the model is confident. A loss that reads only these
    # logits shows its curvature to the whole vector.
    vectors = [every]
    if classes > 1:
        top = logits.detach().argmax(-1, keepdim=True)
        vectors = [v * row_scales(logits) for v in (every.scatter(-1, top, 0.0), every)]
    for vector in vectors:
        (product,) = vector_products([first], [logits], [vector], create_graph=False)
        if torch.linalg.vector_norm(product, dtype=wide(product.dtype)) > rounding_to_zero(product):
            break
    else:
        return None
    if not product.isfinite().all():
        return None
    vector, product, z = (t.detach().to(wide(t.dtype)) for t in (vector, product, logits))
    p = z.softmax(-1)
    tolerance = tolerance_of(loss, logits)

    def is_product(expected: Tensor) -> bool:
        return bool(torch.linalg.vector_norm(product - expected) <= tolerance * torch.linalg.vector_norm(product))

    def softmax_product(c: Tensor) -> Tensor:
        return c.unsqueeze(-1) * p * (vector - (p * vector).sum(-1, keepdim=True))

    if is_large(classes) and not is_trained and is_product(softmax_product(weights_from_gradient(first, p))):
        return HeadLoss("softmax", "gradient")
    # The few curvatures of a saturated sigmoid head may look like those of a softmax.
    may_be_softmax = classes > 1 and not (smoothing > 0 and has_sigmoid_loss(logits, graph))
    if may_be_softmax and is_product(softmax_product(weights_from_product(first, logits))):
        # Any loss of the difference of two logits has this Hessian. Only cross-entropy has a constant c.
        if classes > 2 or _has_constant_weights(first, logits, 10 * tolerance):
            has_graph_weights = smoothing > 0 and _is_close(
                softmax_weights(loss, logits, graph), weights_from_product(first, logits) / scale, tolerance
            )
            return HeadLoss("softmax", "graph" if has_graph_weights else "product", is_trained)
        raise NoClosedForm("its second derivative is that of cross-entropy with weights that depend on the logits")
    h = elementwise_curvature(first, logits)
    if is_product(h.detach().to(vector.dtype) * vector):
        if smoothing == 0:
            return HeadLoss("elementwise")
        return _smoothed_elementwise(h, scale, loss, logits, graph, is_trained)
    raise NoClosedForm("its second derivative is neither that of softmax cross-entropy nor separate for every output")


def _smoothed_elementwise(
    h: Tensor, scale: Tensor | float, loss: Tensor, logits: Tensor, graph: TailGraph, is_trained: bool
) -> HeadLoss:
    """Return the form of an elementwise loss that has a smoothed curvature.

    ``h = c p (1 - p)`` with constant c if ``dh/dz = (1 - 2 p) h``.

    Args:
        h: its curvature times a scale, in the graph.
        scale: the scale.
        loss: a scalar in the graph.
        logits: z.
        graph: the operations between them.
        is_trained: whether c depends on parameters.
    """
    derivative = torch.autograd.grad(h.sum(), logits, retain_graph=True)[0] if h.requires_grad else None
    if derivative is None or not derivative.any():
        return HeadLoss("elementwise")
    h, z = h.detach().to(wide(h.dtype)), logits.detach().to(wide(h.dtype))
    p = z.sigmoid()
    slope = p * (-z).sigmoid()  # p (1 - p), precise where p rounds to 1
    tolerance = 10 * tolerance_of(loss, logits)
    if not _is_close(derivative.to(h.dtype), (1 - 2 * p) * h, tolerance):
        raise UndefinedSmoothing(
            "smoothing (fam_smoothing) is defined for softmax and sigmoid cross-entropy and for squared errors, but "
            "the loss has another curvature: set it to 0."
        )
    c = sigmoid_weights(loss, logits, graph)
    is_in_graph = c is not None and _is_close(c * slope * scale, h, tolerance)
    return HeadLoss("sigmoid", "graph" if is_in_graph else "product", is_trained)


def _is_close(actual: Tensor | None, expected: Tensor, tolerance: float) -> bool:
    """Return True if two tensors agree relative to the second, where that is not 0."""
    if actual is None:
        return False
    known = expected != 0
    norm = torch.linalg.vector_norm
    return bool(norm((actual - expected) * known) <= tolerance * norm(expected))


def _has_constant_weights(first: Tensor, logits: Tensor, tolerance: float) -> bool:
    c = weights_from_product(first, logits, create_graph=True)
    if not c.requires_grad:
        return True
    # If the model is confident, c is a ratio of two tiny numbers, which is inaccurate in half precision.
    p = logits.detach().to(c.dtype).softmax(-1).topk(2, dim=-1).values.prod(-1)
    weighted = c * p
    (derivative,) = torch.autograd.grad(weighted.sum(), logits, retain_graph=True)
    return bool(torch.linalg.vector_norm(derivative) <= tolerance * torch.linalg.vector_norm(weighted))


def elementwise_flatness(features: Tensor, weight: Tensor, curvature: Tensor, *, weights_only: bool = False) -> Tensor:
    """Return kappa of a head under an elementwise loss.

    Args:
        features: phi, shape ``(..., m)``.
        weight: W, shape ``(C, m)``.
        curvature: h, shape ``(..., C)``, see `elementwise_curvature`.
        weights_only: let the gradient reach W alone.

    Returns:
        A scalar in the units of the loss.

    Examples:
        >>> import torch
        >>> elementwise_flatness(torch.ones(1, 3), torch.ones(2, 3), torch.full((1, 2), 0.5))  # 2 * .5 * 3 * 3
        tensor(9.)
    """
    dtype = wide(curvature.dtype)
    phi, h, w = features.to(dtype), curvature.to(dtype), weight.to(dtype)
    if weights_only:
        phi, h = phi.detach(), h.detach()
    return (phi.square().sum(-1) * (h @ w.square().sum(-1))).sum()


def item_weights(batch: Batch, logits: Tensor, form: HeadLoss, number: int = 0) -> tuple[Tensor, Tensor]:
    """Return the item weights c, and whether the loss does not have this form any more.

    The weights are constant unless they are trained.

    Args:
        batch: the batch after its forward pass.
        logits: z of one call of the head, shape ``(..., C)``.
        form: form of the loss.
        number: number of the batch.

    Returns:
        c, shape ``(...)``; for sigmoid cross-entropy one for each logit. And a scalar of bool.
    """
    loss, create_graph = batch.loss, form.has_trained_weights and not batch.weights_only
    scale, tolerance = range_scale(loss, [logits]), tolerance_of(loss, logits)
    if form.item_weights == "gradient":
        (first,) = gradients(loss, [logits], scale, create_graph=False)
        c, is_off = weights_in_chunks(first, logits.detach(), tolerance)
        return c.detach() / scale, is_off
    (first,) = first_derivatives(loss, [logits], scale)
    if form.kind == "softmax":
        c, is_off = checked_weights(first, logits, tolerance, create_graph=create_graph)
    else:
        h, is_off = checked_curvature(first, logits, number, tolerance)
        z = logits.to(wide(h.dtype))
        c = safe_ratio(h.to(z.dtype), z.sigmoid() * (-z).sigmoid())  # p (1 - p), precise where p rounds to 1
    if form.item_weights == "graph":
        read = sigmoid_weights if form.kind == "sigmoid" else softmax_weights
        from_graph = read(loss, logits, batch.graph, create_graph=create_graph)
        assert from_graph is not None
        return from_graph, is_off
    return (c if create_graph else c.detach()) / scale, is_off


def checked_curvature(first: Tensor, logits: Tensor, number: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the curvature of an elementwise loss, see `elementwise_curvature`, and whether the loss is not one.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., C)``.
        logits: z, shape ``(..., C)``.
        number: number of the batch.
        tolerance: see `form_checks.elementwise_is_off`.
    """
    return elementwise_curvature(first, logits), elementwise_is_off(first, logits, number, tolerance)
