"""kappa of a head under softmax cross-entropy, exact or from a sketch of the weight.

With p_i = softmax(z_i) and item weights c_i,

    kappa = sum_i c_i ||phi_i||^2 ( sum_k p_ik ||w_k||^2 - ||sum_k p_ik w_k||^2 )
          = sum_i c_i ||phi_i||^2 Var_{k~p_i}(w_k)

With smoothing eps, ``q_i = (1 - eps) p_i + eps / C`` replaces p_i in the variance (docs/smoothing.md). It is computed
as a sum of non-negative terms, with u the uniform distribution over the classes:

    Var_q(w) = (1 - eps) Var_p(w) + eps Var_u(w) + eps (1 - eps) ||E_p w - E_u w||^2

The exact form costs three products of the head's size. For large vocabularies, row probes are cheaper and unbiased:
``W R / sqrt(P)`` replaces W, with a Rademacher matrix R of shape ``(m, P)`` that all rows share.
``E_r[ Var_{k~p}( (W r)_k ) ] = Var_{k~p}(w_k)``, at O(V m P + N V P) instead of O(N V m).

Rounding: everything is computed relative to the most probable class of a row, from the probabilities of the other
classes. So the relative error is about eps sqrt(C), even for confident rows, until their probabilities underflow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calculus.derivatives import wide
from .chunks import needs_chunks, row_chunks, rows_with_weight, select_rows
from .class_vectors import (
    ClassVectors,
    WeightGradient,
    backward_through_sketch,
    logit_gradient,
    other_probabilities,
    sketch,
)


def softmax_flatness(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    item_weights: Tensor,
    *,
    weights_only: bool = False,
    signs: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return kappa of a head under softmax cross-entropy.

    Args:
        features: phi, shape ``(..., m)``.
        logits: z, shape ``(..., C)``.
        weight: W, shape ``(C, m)``.
        item_weights: c, shape ``(...)``, constant. With many logits, a CPU skips rows of weight 0.
        weights_only: let the gradient reach W alone.
        signs: R, shape ``(m, P)``, for row probes; None for the exact form.
        smoothing: eps, at least 0 and below 1.

    Returns:
        A non-negative scalar in the units of the loss, differentiable to features, logits and weight.

    Examples:
        >>> import torch
        >>> phi, W = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> softmax_flatness(phi, torch.zeros(1, 2), W, torch.ones(1))  # 1 * 4 * Var(+-1)
        tensor(4.)
        >>> softmax_flatness(phi, torch.zeros(1, 2), W, torch.ones(1), signs=torch.tensor([[1.0], [-1.0]]))
        tensor(4.)
    """
    dtype = wide(logits.dtype)
    if weights_only:
        features, logits = features.detach(), logits.detach()
    phi, c = features.to(dtype).reshape(-1, features.shape[-1]), item_weights.to(dtype).flatten()
    z = logits.reshape(-1, logits.shape[-1])
    if needs_chunks(z):
        return _ChunkedFlatness.apply(phi, z, weight, c, signs, smoothing)
    return _SoftmaxFlatness.apply(phi, z.to(dtype), sketch(weight, signs, dtype), c, smoothing)


@torch.no_grad()
def unit_flatness(
    features: Tensor, logits: Tensor, weight: Tensor, signs: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return kappa of every row for the item weight 1, as numbers without a graph.

    Args:
        features: phi, shape ``(..., m)``.
        logits: z, shape ``(..., C)``.
        weight: W, shape ``(C, m)``.
        signs: R, shape ``(m, P)``, for row probes; None for the exact form.
        smoothing: eps, at least 0 and below 1.

    Returns:
        Shape ``(N,)``, N the number of rows.

    Examples:
        >>> import torch
        >>> phi, W = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> unit_flatness(phi, torch.zeros(1, 2), W)  # 4 * Var(+-1)
        tensor([4.])
    """
    dtype = wide(logits.dtype)
    vectors = ClassVectors.from_weight(weight, signs, dtype, smoothing)
    terms = vectors.terms(*other_probabilities(logits.reshape(-1, logits.shape[-1]), dtype))
    return features.to(dtype).reshape(-1, features.shape[-1]).square().sum(-1) * terms.variance


class _SoftmaxFlatness(torch.autograd.Function):
    """kappa of a small head with explicit derivatives, to save overhead."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, z: Tensor, w: Tensor, c: Tensor, smoothing: float) -> Tensor:
        kappa, *derivatives = softmax_flatness_and_derivatives(phi, z, w, c, smoothing)
        ctx.save_for_backward(*derivatives)
        return kappa

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.needs_input_grad, ctx.saved_tensors, strict=False)
        return (*(gradient * d if is_needed else None for is_needed, d in pairs), None, None)


def softmax_flatness_and_derivatives(
    phi: Tensor, z: Tensor, w: Tensor, c: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return kappa of a softmax cross-entropy head and its derivatives by phi, z, W.

    With v_ik = ||w_k||^2 - 2 <w_k, mean_i>, mean_i = sum_k q_ik w_k and a_i = c_i ||phi_i||^2:
    ``dkappa/dz_ik = (1 - eps) a_i p_ik (v_ik - sum_j p_ij v_ij)``, ``dkappa/dphi_i = 2 c_i Var_i phi_i`` and
    ``dkappa/dw_k = 2 sum_i a_i q_ik (w_k - mean_i)``. Without smoothing, q = p. Everything is computed relative to the
    most probable class t of a row, from the probabilities of the other classes. This avoids cancellation, so that kappa
    and its derivatives keep the precision of the logits for confident rows, too.

    Args:
        phi: features, shape ``(N, m)``.
        z: logits, shape ``(N, C)``.
        w: W, shape ``(C, m)``, or a sketch of it, shape ``(C, P)``.
        c: item weights, shape ``(N,)``.
        smoothing: eps.
    """
    w = w - w.mean(0)  # kappa does not change, and cancellation becomes harmless
    top = z.argmax(-1, keepdim=True)
    others = z.softmax(-1).scatter(1, top, 0.0)  # probabilities of the other classes
    rest = others.sum(-1, keepdim=True)
    top_rows = w.index_select(0, top.squeeze(1))
    mean_offset = torch.addcmul(others @ w, rest, top_rows, value=-1)  # E_p w - w_top
    mean = top_rows + mean_offset
    squares = w.square().sum(-1)
    gap = mean_offset  # mean_i - w_top, mean_i under q
    if smoothing:
        gap = torch.sub(mean_offset, mean, alpha=smoothing)
    smooth_mean = mean if not smoothing else (1 - smoothing) * mean
    v = torch.addmm(squares, smooth_mean, w.T, alpha=-2)
    # ||w_k - mean_i||^2 up to a constant in each row, 0 at the top class.
    v = v + (top_rows * (smooth_mean + gap)).sum(-1, keepdim=True)
    p_v = (others * v).sum(-1, keepdim=True)
    variance = p_v.squeeze(-1) + mean_offset.square().sum(-1)
    scales = c * phi.square().sum(-1)
    p_scales = scales.unsqueeze(-1)
    if smoothing:
        variance = variance - 2 * smoothing * (mean_offset * mean).sum(-1)  # Var_p
        variance = (1 - smoothing) * (variance + smoothing * mean.square().sum(-1)) + smoothing * squares.mean()
        p_scales = (1 - smoothing) * p_scales
    scaled_p = p_scales * others
    scaled_top = (rest - 1) * p_scales  # -(1 - eps) a_i p_i,top
    grad_w = torch.addmm(scaled_p.sum(0).unsqueeze(-1) * w, scaled_p.T, smooth_mean, alpha=-1)
    if smoothing:
        grad_w = grad_w + smoothing / len(w) * (scales.sum() * w - scales @ smooth_mean)
    grad_w = 2 * grad_w.index_add(0, top.squeeze(1), scaled_top * gap)
    grad_z = (scaled_p * (v - p_v)).scatter(1, top, scaled_top * p_v)
    return scales @ variance, (2 * c * variance).unsqueeze(-1) * phi, grad_z, grad_w


class _ChunkedFlatness(torch.autograd.Function):
    """kappa in chunks, whose probabilities are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, z: Tensor, w: Tensor, c: Tensor, signs: Tensor | None, smoothing: float
    ) -> Tensor:
        vectors = ClassVectors.from_weight(w, signs, phi.dtype, smoothing)
        kappa = phi.new_zeros(())
        for rows in row_chunks(rows_with_weight(c), *z.shape):
            terms = vectors.terms(*other_probabilities(select_rows(z, rows), phi.dtype))
            kappa += (select_rows(c, rows) * select_rows(phi, rows).square().sum(-1)) @ terms.variance
            del terms  # frees memory for the next chunk
        ctx.save_for_backward(phi, z, w, c, signs)
        ctx.smoothing = smoothing
        return kappa

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        phi, z, w, c, signs = ctx.saved_tensors
        vectors = ClassVectors.from_weight(w, signs, phi.dtype, ctx.smoothing)
        needs_phi, needs_z, needs_w, *_ = ctx.needs_input_grad
        grad_phi = torch.zeros_like(phi) if needs_phi else None
        grad_z = torch.zeros_like(z) if needs_z else None
        grad_w = WeightGradient(vectors.rows, vectors.center, torch.ones_like(gradient)) if needs_w else None
        c = gradient * c
        for rows in row_chunks(rows_with_weight(c), *z.shape):
            c_chunk, phi_chunk = select_rows(c, rows), select_rows(phi, rows)
            others, top = other_probabilities(select_rows(z, rows), phi.dtype)
            terms = vectors.terms(others, top)
            if grad_phi is not None:
                grad_phi[rows] = (2 * c_chunk * terms.variance).unsqueeze(-1) * phi_chunk
            scales = c_chunk * phi_chunk.square().sum(-1)
            part, scaled_q, scaled_gap = logit_gradient(others, scales, terms, ctx.smoothing)
            if grad_z is not None:
                grad_z[rows] = part.to(z.dtype)
            if grad_w is not None:
                grad_w.add(scaled_q, terms.mean, top, scaled_gap)
            del others, terms, part, scaled_q, scaled_gap  # frees memory for the next chunk
        weight_gradient = None if grad_w is None else grad_w.finish()
        if weight_gradient is not None:
            weight_gradient = (
                weight_gradient if signs is None else backward_through_sketch(weight_gradient, signs)
            ).to(w.dtype)
        return grad_phi, grad_z, weight_gradient, None, None, None
