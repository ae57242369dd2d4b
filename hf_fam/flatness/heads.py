"""Closed forms of kappa for the layer into the logits: one small matrix product, no second derivative of the model.

Softmax cross-entropy: with p_i = softmax(z_i) and item weights c_i,

    kappa = sum_i c_i ||phi_i||^2 ( sum_k p_ik ||w_k||^2 - ||sum_k p_ik w_k||^2 )
          = sum_i c_i ||phi_i||^2 Var_{k~p_i}(w_k)

A loss that treats every output on its own (sigmoid cross-entropy, squared error, Huber, Poisson ...), with
h_ik = d2L/dz_ik^2:

    kappa = sum_ik h_ik ||phi_i||^2 ||w_k||^2

The labels appear in neither, except through c and h, which are read off the loss itself: reductions, ignored and
shifted labels, class weights, label smoothing, ``num_items_in_batch`` and any scale of the loss come out right unasked.
Source: Adilova et al. 2023 (arXiv 2307.02337), section 3, for the definition; docs/mathematics.md for the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .batch import Batch, RecheckSchedule
from .curvature import gradients, range_scale, rounding_error, vector_products, wide

# Above this many classes one second-order pass over the logits is felt, and c is read off the gradient instead.
GRADIENT_WEIGHTS_ABOVE = 4096

# How far, relative to its size, a Hessian-vector product may be from the assumed one.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class NoClosedForm(ValueError):
    """The loss, as a function of the logits, has none of the closed forms; the message says why."""


class ClosedForm:
    """The exact kappa of the head; the form of the loss is proven at the first batch, and again now and then."""

    def __init__(self) -> None:
        self._form: HeadLoss | None = None
        self._schedule = RecheckSchedule()

    def __call__(self, batch: Batch) -> Tensor:
        """kappa of the batch, in the graph.

        Raises:
            NoClosedForm: none of the forms holds.
        """
        looking = self._schedule.due()
        if looking or self._form is None:
            _refuse_coupled_groups_or_calls(batch)
            forms = {recognise(batch.loss, z) for z in batch.pre_activations}
            if len(forms) > 1:
                raise NoClosedForm(f"the head is called {len(batch.pre_activations)} times, with different losses")
            (self._form,) = forms
        calls = zip(batch.features, batch.pre_activations, strict=True)
        parts = [self._of_call(batch, batch.linear_map.feature_rows(phi), z, self._form) for phi, z in calls]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def _of_call(self, batch: Batch, phi: Tensor, z: Tensor, form: HeadLoss) -> Tensor:
        only, scale = batch.weights_only, range_scale(batch.loss, [z])
        if form.item_weights == "gradient":
            (first,) = gradients(batch.loss, [z], scale, create_graph=False)
            c = weights_from_gradient(first, z.detach().to(wide(z.dtype)).softmax(-1)) / scale
            return softmax_flatness(phi, z, batch.weight, c, weights_only=only)
        (first,) = gradients(batch.loss, [z], scale)
        if form.kind == "softmax":
            return softmax_flatness(phi, z, batch.weight, weights_from_product(first, z) / scale, weights_only=only)
        return elementwise_flatness(phi, batch.weight, elementwise_curvature(first, z), weights_only=only) / scale


def _refuse_coupled_groups_or_calls(batch: Batch) -> None:
    """The closed form is one sum over rows, each with features of its own."""
    if batch.linear_map.groups > 1:
        raise NoClosedForm("the head is a grouped convolution")
    calls = batch.pre_activations
    if len(calls) == 1:
        return
    first = gradients(batch.loss, calls, range_scale(batch.loss, calls))
    for k, z in enumerate(calls):
        moved = [torch.zeros_like(other) for other in calls]
        generator = torch.Generator(z.device).manual_seed(0)
        moved[k] = torch.randn(z.shape, generator=generator, device=z.device).to(z.dtype)
        answers = vector_products(first, calls, moved, create_graph=False)
        threshold = rounding_error(answers)
        if any(h.abs().max() > threshold for j, h in enumerate(answers) if j != k):
            raise NoClosedForm(
                f"the head is called {len(calls)} times in a forward pass and the loss couples the calls"
            )


@dataclass(frozen=True)
class HeadLoss:
    """What the loss was proven to be, as a function of the logits.

    Attributes:
        kind: ``"softmax"`` or ``"elementwise"``.
        item_weights: how c is found: from a Hessian ``"product"``, or from the ``"gradient"`` (hard labels only).
    """

    kind: Literal["softmax", "elementwise"]
    item_weights: Literal["product", "gradient"] = "product"


def recognise(loss: Tensor, logits: Tensor) -> HeadLoss:
    """Prove the form of a loss by one Hessian-vector product with a random vector.

    The gradient alone does not prove it: focal loss has the gradient's direction of cross-entropy.

    Args:
        loss: scalar, in the graph.
        logits: z, shape ``(..., C)``.

    Raises:
        NoClosedForm: the loss is of neither kind.

    Examples:
        >>> import torch
        >>> z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        >>> recognise(torch.nn.functional.cross_entropy(z, torch.tensor([0, 1, 2, 0])), z).kind
        'softmax'
        >>> recognise(torch.nn.functional.mse_loss(z, torch.zeros(4, 3, dtype=torch.float64)), z).kind
        'elementwise'
    """
    (first,) = gradients(loss, [logits], range_scale(loss, [logits]))  # all comparisons are relative
    classes = logits.shape[-1]
    generator = torch.Generator(logits.device).manual_seed(0)
    vector = torch.randn(logits.shape, generator=generator, device=logits.device).to(logits.dtype)
    # Without the most probable class no difference of nearly equal numbers is taken, however confident the model.
    if classes > 1:
        vector = vector.scatter(-1, logits.detach().argmax(-1, keepdim=True), 0.0)
    (product,) = vector_products([first], [logits], [vector], create_graph=False)
    vector, product, z = (t.detach().to(wide(t.dtype)) for t in (vector, product, logits))
    p = z.softmax(-1)
    tolerance = max(_TOLERANCE[logits.dtype], _TOLERANCE[loss.dtype])  # models take the loss in float32

    def agrees(assumed: Tensor) -> bool:
        return bool(torch.linalg.vector_norm(product - assumed) <= tolerance * torch.linalg.vector_norm(product))

    def softmax_product(c: Tensor) -> Tensor:
        return c.unsqueeze(-1) * p * (vector - (p * vector).sum(-1, keepdim=True))

    if classes > GRADIENT_WEIGHTS_ABOVE and agrees(softmax_product(weights_from_gradient(first, p))):
        return HeadLoss("softmax", "gradient")
    if classes > 1 and agrees(softmax_product(weights_from_product(first, logits))):
        # Any loss of the difference of two logits has this Hessian; cross-entropy alone has a constant c.
        if classes > 2 or _constant_weights(first, logits, 10 * tolerance):
            return HeadLoss("softmax", "product")
        raise NoClosedForm("its second derivative is that of cross-entropy with weights that depend on the logits")
    if agrees(elementwise_curvature(first, logits).detach().to(vector.dtype) * vector):
        return HeadLoss("elementwise")
    raise NoClosedForm("its second derivative is neither that of softmax cross-entropy nor separate for every output")


def _constant_weights(first: Tensor, logits: Tensor, tolerance: float) -> bool:
    c = weights_from_product(first, logits, create_graph=True)
    if not c.requires_grad:
        return True
    (slope,) = torch.autograd.grad(c.sum(), logits, retain_graph=True)
    return bool(torch.linalg.vector_norm(slope) <= tolerance * torch.linalg.vector_norm(c))


def softmax_flatness(
    features: Tensor, logits: Tensor, weight: Tensor, item_weights: Tensor, *, weights_only: bool = False
) -> Tensor:
    """kappa of a head under softmax cross-entropy.

    Args:
        features: phi, shape ``(..., m)``.
        logits: z, shape ``(..., C)``.
        weight: W, shape ``(C, m)``.
        item_weights: c, shape ``(...)``, constant.
        weights_only: let the gradient reach W alone.

    Returns:
        A non-negative scalar in the units of the loss, differentiable to features, logits and weight.

    Examples:
        >>> import torch
        >>> phi, W = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> softmax_flatness(phi, torch.zeros(1, 2), W, torch.ones(1))  # 1 * 4 * Var(+-1)
        tensor(4.)
    """
    dtype = wide(logits.dtype)
    if weights_only:
        features, logits = features.detach(), logits.detach()
    phi, z = (t.to(dtype).reshape(-1, t.shape[-1]) for t in (features, logits))
    c = item_weights.to(dtype).flatten()
    return _SoftmaxFlatness.apply(phi, z, weight.to(dtype), c)


class _SoftmaxFlatness(torch.autograd.Function):
    """kappa with its derivatives written out: a small head is all overhead, and this has the fewest operations."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, z: Tensor, w: Tensor, c: Tensor) -> Tensor:
        kappa, *derivatives = softmax_flatness_and_derivatives(phi, z, w, c)
        ctx.save_for_backward(*derivatives)
        return kappa

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.needs_input_grad, ctx.saved_tensors, strict=False)
        return (*(gradient * d if need else None for need, d in needed), None)


def softmax_flatness_and_derivatives(
    phi: Tensor, z: Tensor, w: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kappa of a head under softmax cross-entropy and its derivatives by phi, z and W.

    With v_ik = ||w_k||^2 - 2 <w_k, mean_i>, mean_i = sum_k p_ik w_k and a_i = c_i ||phi_i||^2:
    ``dkappa/dz_ik = a_i p_ik (v_ik - sum_j p_ij v_ij)``, ``dkappa/dphi_i = 2 c_i Var_i phi_i`` and
    ``dkappa/dw_k = 2 sum_i a_i p_ik (w_k - mean_i)``.

    Args:
        phi: features, shape ``(N, m)``.
        z: logits, shape ``(N, C)``.
        w: W, shape ``(C, m)``.
        c: item weights, shape ``(N,)``.
    """
    p = z.softmax(-1)
    w = w - w.mean(0)  # kappa does not change, cancellation becomes harmless
    mean = p @ w
    v = torch.addmm(w.square().sum(-1), mean, w.T, alpha=-2)
    p_v = (p * v).sum(-1, keepdim=True)
    variance = p_v.squeeze(-1) + mean.square().sum(-1)
    amount = c * phi.square().sum(-1)
    weighted = amount.unsqueeze(-1) * p
    of_w = 2 * torch.addmm(weighted.sum(0).unsqueeze(-1) * w, weighted.T, mean, alpha=-1)
    return amount @ variance, (2 * c * variance).unsqueeze(-1) * phi, weighted * (v - p_v), of_w


def elementwise_flatness(features: Tensor, weight: Tensor, curvature: Tensor, *, weights_only: bool = False) -> Tensor:
    """kappa of a head under a loss that treats every output on its own.

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


def weights_from_product(first: Tensor, logits: Tensor, *, create_graph: bool = False) -> Tensor:
    """Item weights c of a softmax loss with any labels, shape ``(...)``.

    ``c_i = -(H e_k)_j / (p_k p_j)`` for the two most probable classes k and j.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., C)``.
        logits: z, shape ``(..., C)``.
        create_graph: keep c in the graph, to see whether it depends on z.
    """
    p = (logits if create_graph else logits.detach()).to(wide(logits.dtype)).softmax(-1)
    (p_k, p_j), (k, j) = (t.unbind(-1) for t in p.topk(2, dim=-1))
    e_k = torch.zeros_like(logits).scatter_(-1, k.unsqueeze(-1), 1)
    (product,) = vector_products([first], [logits], [e_k], create_graph=create_graph)
    h_jk = product.to(p.dtype).gather(-1, j.unsqueeze(-1)).squeeze(-1)
    return _safe_ratio(-h_jk, p_k * p_j)


def weights_from_gradient(first: Tensor, p: Tensor) -> Tensor:
    """Item weights c of a softmax loss with hard labels, shape ``(...)``, constant.

    ``c_i = sum_{k: g_ik > 0} g_ik / sum_{k: g_ik > 0} p_ik``, for all classes but the labelled one have g = c p.

    Args:
        first: g = dL/dz, shape ``(..., C)``.
        p: softmax(z), shape ``(..., C)``.
    """
    g = first.detach().to(p.dtype)
    positive = g > 0
    return _safe_ratio((g * positive).sum(-1), (p.detach() * positive).sum(-1))


def elementwise_curvature(first: Tensor, logits: Tensor) -> Tensor:
    """h = d2L/dz_ik^2 of a loss that treats every output on its own: the Hessian's product with ones, in the graph."""
    return vector_products([first], [logits], [torch.ones_like(logits)])[0]


def _safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator underflows: the item's kappa vanishes there too."""
    tiny = torch.finfo(denominator.dtype).tiny
    return torch.where(denominator > tiny, numerator / denominator.clamp_min(tiny), torch.zeros_like(numerator))
