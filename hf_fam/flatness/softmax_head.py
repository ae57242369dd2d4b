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

Temporaries of the size of the logits are split into chunks: at most a quarter exists at a time, and never more than
``CHUNK_ELEMENTS`` entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calculus.derivatives import wide

# Largest number of entries of a temporary. Two or three exist at a time (32 MB each in float32). With smaller chunks,
# reading and writing the gradient of W once for every chunk would dominate the time.
CHUNK_ELEMENTS = 2**23

# Up to this many logits, no chunks are used: for a small head, overhead dominates.
_MAX_UNCHUNKED = 2**20


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
    if z.numel() > _MAX_UNCHUNKED:
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


def sketch(weight: Tensor, signs: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return ``W R / sqrt(P)``, shape ``(C, P)``, differentiable to W.

    Without signs, return W itself.

    Examples:
        >>> import torch
        >>> sketch(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [-1.0]]), torch.float32)
        tensor([[-1.]])
    """
    if signs is None:
        return weight.to(dtype)
    # Half precision is widened one chunk at a time.
    sketches = [part.to(dtype) @ signs.to(dtype) for part in _weight_chunks(weight)]
    return torch.cat(sketches) / math.sqrt(signs.shape[1])


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


@dataclass(frozen=True)
class ClassVectors:
    """The rows of W or of a sketch of it, with their mean and squared norms.

    Centering the rows in place would copy W. Instead, the formulas contain the center, which makes cancellation
    harmless. kappa does not depend on the center.

    Attributes:
        rows: w_k, shape ``(C, m)`` or ``(C, P)``.
        center: mu, the mean of the rows.
        squares: ``||w_k - mu||^2``, shape ``(C,)``.
        smoothing: eps. The mean and the variance are those under ``q = (1 - eps) p + eps / C``.
    """

    rows: Tensor
    center: Tensor
    squares: Tensor
    smoothing: float = 0.0

    @classmethod
    def from_weight(
        cls, weight: Tensor, signs: Tensor | None, dtype: torch.dtype, smoothing: float = 0.0
    ) -> ClassVectors:
        """Return the class vectors of W, or of its sketch by signs."""
        rows = sketch(weight.detach(), signs, dtype)
        center = rows.mean(0)
        squares = torch.cat([(part - center).square_().sum(-1) for part in _weight_chunks(rows)])
        return cls(rows, center, squares, smoothing)

    def terms(self, others: Tensor, top: Tensor) -> RowTerms:
        """Return mean and variance of some rows, and the factors of their derivatives.

        Args:
            others: probabilities, 0 at the most probable class of each row, shape ``(n, C)``.
            top: the most probable class t, shape ``(n, 1)``.
        """
        smoothing = self.smoothing
        rest = others.sum(-1, keepdim=True)
        top_rows = self.rows.index_select(0, top.squeeze(1))
        offset = torch.addcmul(others @ self.rows, rest, top_rows, value=-1)  # E_p w - w_t
        mean_p = top_rows - self.center + offset
        mean, gap = mean_p, offset
        if smoothing:
            mean, gap = (1 - smoothing) * mean_p, torch.sub(offset, mean_p, alpha=smoothing)
        v = torch.addmm(self.squares, mean, self.rows.T, alpha=-2)
        v.sub_(v.gather(1, top))
        p_v = (others * v).sum(-1, keepdim=True)
        variance = p_v.squeeze(-1) + offset.square().sum(-1)
        if smoothing:
            variance = variance - 2 * smoothing * (offset * mean_p).sum(-1)  # Var_p
            variance = (1 - smoothing) * (variance + smoothing * mean_p.square().sum(-1))
            variance = variance + smoothing * self.squares.mean()
        return RowTerms(top, rest, mean, gap, v, p_v, variance)


class RowTerms(NamedTuple):
    """Mean and variance of the class vectors of some rows, and the factors of their derivatives.

    Attributes:
        top: the most probable class t, shape ``(n, 1)``.
        rest: ``1 - p_t``, shape ``(n, 1)``.
        mean: ``sum_k q_ik w_k - mu``, shape ``(n, m)``.
        gap: mean minus the centered w_t, shape ``(n, m)``; precise for confident rows.
        v: ``||w_k - mean_i||^2``, up to a constant 0 at the top class, shape ``(n, C)``.
        p_v: ``sum_k p_ik v_ik``, shape ``(n, 1)``.
        variance: ``Var_{k~q_i}(w_k)``, shape ``(n,)``.
    """

    top: Tensor
    rest: Tensor
    mean: Tensor
    gap: Tensor
    v: Tensor
    p_v: Tensor
    variance: Tensor


def other_probabilities(logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return probabilities that are 0 at the most probable class of each row, and this class.

    Args:
        logits: z, shape ``(n, C)``.
        dtype: precision to compute in.
    """
    top = logits.argmax(-1, keepdim=True)
    return logits.softmax(-1, dtype).scatter_(1, top, 0.0), top


def scale_rows(others: Tensor, scales: Tensor, smoothing: float) -> Tensor:
    """Return ``a_i q_ik``, without the share of p at the most probable class, shape ``(n, C)``.

    Args:
        others: probabilities, 0 at the most probable class, shape ``(n, C)``; they are overwritten.
        scales: a, shape ``(n,)``.
        smoothing: eps.

    Examples:
        >>> import torch
        >>> scale_rows(torch.tensor([[0.5, 0.0]]), torch.tensor([2.0]), 0.1)
        tensor([[1.0000, 0.1000]])
    """
    if not smoothing:
        return others.mul_(scales.unsqueeze(-1))
    return others.mul_(((1 - smoothing) * scales).unsqueeze(-1)).add_(
        (smoothing / others.shape[1] * scales).unsqueeze(-1)
    )


class WeightGradient:
    """A multiple of dkappa/dW, summed over chunks.

    ``2 sum_i a_i q_ik (w_k - mean_i)``. With the rows of a sketch, it is the derivative by the sketch.

    Args:
        rows: w_k, shape ``(C, m)``.
        center: mu, shape ``(m,)``.
        factor: the multiple, a scalar.
        into: gradient to add to, shape ``(C, m)``; None for a new one.
    """

    def __init__(self, rows: Tensor, center: Tensor, factor: Tensor, into: Tensor | None = None) -> None:
        self._rows, self._center, self._factor = rows, center, 2 * factor
        self._total = torch.zeros_like(rows) if into is None else into
        self._scale_sums = torch.zeros(rows.shape[0], dtype=center.dtype, device=rows.device)

    def add(self, scaled_q: Tensor, mean: Tensor, top: Tensor, scaled_gap: Tensor) -> None:
        """Add one chunk.

        Args:
            scaled_q: ``a_i q_ik`` without the share of p at the most probable class, see `scale_rows`.
            mean: centered means, shape ``(n, m)``.
            top: the most probable class, shape ``(n, 1)``.
            scaled_gap: ``(1 - eps) a_i p_it`` times mean minus centered w_t, shape ``(n, m)``.
        """
        dtype = self._total.dtype
        self._scale_sums += scaled_q.sum(0)
        self._total.addmm_(scaled_q.T.to(dtype), (-self._factor * mean).to(dtype))
        self._total.index_add_(0, top.squeeze(1), (-self._factor * scaled_gap).to(dtype))

    def finish(self) -> Tensor:
        """Return the sum after the last chunk."""
        scale_sums, dtype = self._factor * self._scale_sums, self._total.dtype
        self._total.addcmul_(scale_sums.to(dtype).unsqueeze(-1), self._rows.to(dtype))
        return self._total.addr_(scale_sums.to(dtype), self._center.to(dtype), alpha=-1)


def backward_through_sketch(sketch_gradient: Tensor, signs: Tensor, into: Tensor | None = None) -> Tensor:
    """Return the derivative by W: ``sketch_gradient R^T / sqrt(P)``.

    Args:
        sketch_gradient: the derivative by the sketch, shape ``(C, P)``.
        signs: R, shape ``(m, P)``.
        into: gradient to add to, shape ``(C, m)``; None for a new one.
    """
    dtype = sketch_gradient.dtype if into is None else into.dtype
    scaled, signs_transposed = (sketch_gradient / math.sqrt(signs.shape[1])).to(dtype), signs.T.to(dtype)
    return scaled @ signs_transposed if into is None else into.addmm_(scaled, signs_transposed)


def logit_gradient(others: Tensor, scales: Tensor, terms: RowTerms, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivative of kappa by the logits, and what `WeightGradient.add` needs.

    The derivative is ``(1 - eps) a_i p_ik (v_ik - sum_j p_ij v_ij)``, shape ``(n, C)``.

    Args:
        others: probabilities, 0 at the most probable class, shape ``(n, C)``; they are overwritten.
        scales: ``a_i = c_i ||phi_i||^2``, shape ``(n,)``.
        terms: `ClassVectors.terms` of these rows; v is overwritten.
        smoothing: eps.
    """
    p_scales = ((1 - smoothing) * scales).unsqueeze(-1)
    scaled_top = (1 - terms.rest) * p_scales
    gradient = terms.v.sub_(terms.p_v).mul_(others).mul_(p_scales)
    gradient.scatter_(1, terms.top, (-scaled_top * terms.p_v).to(gradient.dtype))
    return gradient, scale_rows(others, scales, smoothing), scaled_top * terms.gap


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


def rows_with_weight(item_weights: Tensor) -> Tensor | None:
    """Return the numbers of the rows whose weight is not 0, or None to use all rows.

    Only a CPU skips rows. On other devices the host would have to wait for their number.
    """
    if item_weights.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return item_weights.nonzero().squeeze(1)


def row_chunks(rows: Tensor | None, count: int, classes: int) -> Iterator[Tensor | slice]:
    """Yield chunks of row numbers, or slices if all rows are used.

    A chunk has at most ``CHUNK_ELEMENTS`` logits, and at most a quarter of all logits unless they are few.

    Args:
        rows: numbers of the rows to use, or None for all.
        count: N, the total number of rows.
        classes: C.

    Examples:
        >>> import torch
        >>> list(row_chunks(torch.tensor([1, 3]), 4, 5)), list(row_chunks(None, 9, 2**20))
        ([tensor([1, 3])], [slice(0, 2, None), ..., slice(8, 9, None)])
    """
    # With four chunks or more, the temporaries and the gradient of the logits need less memory than the loss itself.
    size = max(1, min(CHUNK_ELEMENTS, max(_MAX_UNCHUNKED, count * classes // 4)) // classes)
    if rows is None or rows.numel() == count:
        yield from (slice(start, min(start + size, count)) for start in range(0, count, size))
    elif rows.numel():
        yield from rows.split(size)


def select_rows(t: Tensor, rows: Tensor | slice) -> Tensor:
    """Return rows of a tensor, as a view if they are a slice."""
    return t[rows] if isinstance(rows, slice) else t.index_select(0, rows)


def _weight_chunks(rows: Tensor) -> Sequence[Tensor]:
    return rows.split(max(1, CHUNK_ELEMENTS // max(1, rows.shape[1])))
