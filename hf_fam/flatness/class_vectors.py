"""The rows of a head's weight as vectors of the classes: their mean and variance under softmax, and the derivatives.

Everything is relative to the most probable class of a row, which keeps confident rows precise (softmax_head.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .chunks import weight_chunks


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
    # Half precision is converted one chunk at a time.
    sketches = [part.to(dtype) @ signs.to(dtype) for part in weight_chunks(weight)]
    return torch.cat(sketches) / math.sqrt(signs.shape[1])


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
        squares = torch.cat([(part - center).square_().sum(-1) for part in weight_chunks(rows)])
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
