"""kappa of a head under softmax cross-entropy: all at once, in chunks of rows, or from a sketch of the weight.

With p_i = softmax(z_i) and item weights c_i,

    kappa = sum_i c_i ||phi_i||^2 ( sum_k p_ik ||w_k||^2 - ||sum_k p_ik w_k||^2 )
          = sum_i c_i ||phi_i||^2 Var_{k~p_i}(w_k)

Exact, this costs three products of the head's size. A large vocabulary has two cheaper, unbiased forms:

- *row probes*: W is replaced by ``W R / sqrt(P)`` with a Rademacher matrix R of shape ``(m, P)``, shared by all rows.
  ``E_r[ Var_{k~p}( (W r)_k ) ] = Var_{k~p}(w_k)``, at O(V m P + N V P) instead of O(N V m).
- *token sampling*: a random part of the rows whose item weight is not 0, scaled up.

Rounding: all at once the relative error is about eps sqrt(C), for confident rows too, until their probabilities
underflow. In chunks the variance of a row is a difference of numbers of the size of ||w_k - mu||^2, mu the
mean of the rows of W: its error is some eps times that. In float32 a row whose best class leads all others by 10 has
kappa to about 1e-3, one that leads by 15 to about a tenth, of a kappa that is 1e-3 or 1e-5 of that of an undecided row.
In a mean over rows of all kinds that is nothing; a data set of such rows alone takes float64.

Of a temporary of the size of the logits a quarter exists at a time, and never more than ``CHUNK_ELEMENTS`` entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calculus.derivatives import wide

# Entries of one temporary of chunk x V; there are two or three of them at a time (32 MB each in float32). Smaller
# chunks spend their time on reading and writing the gradient of W, (V, m), once a chunk.
CHUNK_ELEMENTS = 2**23

# Below this many logits the derivatives are taken all at once: a small head is all overhead.
_AT_ONCE = 2**20


def softmax_flatness(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    item_weights: Tensor,
    *,
    weights_only: bool = False,
    signs: Tensor | None = None,
) -> Tensor:
    """kappa of a head under softmax cross-entropy.

    Args:
        features: phi, shape ``(..., m)``.
        logits: z, shape ``(..., C)``.
        weight: W, shape ``(C, m)``.
        item_weights: c, shape ``(...)``, constant; rows of weight 0 cost nothing where there are many logits.
        weights_only: let the gradient reach W alone.
        signs: R, shape ``(m, P)``, for row probes; None for the exact form.

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
    if z.numel() > _AT_ONCE:
        return _ChunkedFlatness.apply(phi, z, weight, c, signs)
    return _SoftmaxFlatness.apply(phi, z.to(dtype), sketch(weight, signs, dtype), c)


def sketch(weight: Tensor, signs: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``W R / sqrt(P)``, shape ``(C, P)``, differentiable to W; W itself without signs.

    Examples:
        >>> import torch
        >>> sketch(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [-1.0]]), torch.float32)
        tensor([[-1.]])
    """
    if signs is None:
        return weight.to(dtype)
    parts = [part.to(dtype) @ signs.to(dtype) for part in _parts(weight)]  # half precision is widened bit by bit
    return torch.cat(parts) / math.sqrt(signs.shape[1])


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
    """kappa of a head under softmax cross-entropy and its derivatives by phi, z and W, all at once.

    With v_ik = ||w_k||^2 - 2 <w_k, mean_i>, mean_i = sum_k p_ik w_k and a_i = c_i ||phi_i||^2:
    ``dkappa/dz_ik = a_i p_ik (v_ik - sum_j p_ij v_ij)``, ``dkappa/dphi_i = 2 c_i Var_i phi_i`` and
    ``dkappa/dw_k = 2 sum_i a_i p_ik (w_k - mean_i)``. All is computed relative to the most probable class t of a row,
    from the probabilities of the others, so that nothing of the size of ||w_t|| has to cancel: kappa and its
    derivatives keep the precision of the logits, however confident a row is.

    Args:
        phi: features, shape ``(N, m)``.
        z: logits, shape ``(N, C)``.
        w: W, shape ``(C, m)``, or a sketch of it, shape ``(C, P)``.
        c: item weights, shape ``(N,)``.
    """
    w = w - w.mean(0)  # kappa does not change, cancellation becomes harmless
    top = z.argmax(-1, keepdim=True)
    q = z.softmax(-1).scatter(1, top, 0.0)  # of the other classes: all that is large cancels beforehand
    rest = q.sum(-1, keepdim=True)
    of_top = w.index_select(0, top.squeeze(1))
    moved = torch.addcmul(q @ w, rest, of_top, value=-1)  # mean - w_top
    mean = of_top + moved
    squares = w.square().sum(-1)
    v = torch.addmm(squares, mean, w.T, alpha=-2)
    v = v + (of_top * (mean + moved)).sum(-1, keepdim=True)  # up to a constant a row ||w_k - mean||^2; 0 at the top
    q_v = (q * v).sum(-1, keepdim=True)
    variance = q_v.squeeze(-1) + moved.square().sum(-1)
    amount = c * phi.square().sum(-1)
    weighted = amount.unsqueeze(-1) * q
    at_top = (rest - 1) * amount.unsqueeze(-1)  # -a_i p_i,top
    of_w = torch.addmm(weighted.sum(0).unsqueeze(-1) * w, weighted.T, mean, alpha=-1)
    of_w = 2 * of_w.index_add(0, top.squeeze(1), at_top * moved)
    of_z = (weighted * (v - q_v)).scatter(1, top, at_top * q_v)
    return amount @ variance, (2 * c * variance).unsqueeze(-1) * phi, of_z, of_w


@dataclass(frozen=True)
class ClassVectors:
    """The rows of W, or of a sketch of it, with what the chunks need of them.

    They are not centered in place, which would be a copy of W: kappa does not depend on the center, and with it in the
    formulas cancellation is harmless.

    Attributes:
        rows: w_k, shape ``(C, m)`` or ``(C, P)``.
        center: mu, the mean of the rows.
        squares: ``||w_k - mu||^2``, shape ``(C,)``.
    """

    rows: Tensor
    center: Tensor
    squares: Tensor

    @classmethod
    def of(cls, weight: Tensor, signs: Tensor | None, dtype: torch.dtype) -> ClassVectors:
        """Those of W, or of its sketch by signs."""
        rows = sketch(weight.detach(), signs, dtype)
        center = rows.mean(0)
        squares = torch.cat([(part - center).square_().sum(-1) for part in _parts(rows)])
        return cls(rows, center, squares)

    def mean(self, p: Tensor) -> Tensor:
        """``sum_k p_ik w_k - mu``, shape ``(n, m)``."""
        return torch.addmm(self.center, p, self.rows, beta=-1)

    def variance(self, p: Tensor, mean: Tensor) -> Tensor:
        """``Var_{k~p_i}(w_k)``, shape ``(n,)``."""
        # Not a product: over 100,000 classes its plain sum loses the many small probabilities.
        return (p * self.squares).sum(-1) - mean.square().sum(-1)


class WeightGradient:
    """A multiple of dkappa/dW, summed over chunks: in a buffer of its own, or added to a gradient that is there.

    ``2 sum_i a_i p_ik (w_k - mean_i)``; of the sketch where the rows are its.

    Args:
        rows: w_k, shape ``(C, m)``.
        center: mu, shape ``(m,)``.
        factor: a scalar.
        into: the gradient to add to, shape ``(C, m)``; None for a new one.
    """

    def __init__(self, rows: Tensor, center: Tensor, factor: Tensor, into: Tensor | None = None) -> None:
        self._rows, self._center, self._factor = rows, center, 2 * factor
        self._total = torch.zeros_like(rows) if into is None else into
        self._mass = torch.zeros(rows.shape[0], dtype=center.dtype, device=rows.device)

    def add(self, weighted: Tensor, mean: Tensor) -> None:
        """One chunk: ``a_i p_ik``, shape ``(n, C)``, and the centered means, shape ``(n, m)``."""
        dtype = self._total.dtype
        self._mass += weighted.sum(0)
        self._total.addmm_(weighted.T.to(dtype), (-self._factor * mean).to(dtype))

    def finish(self) -> Tensor:
        """The sum, when every chunk was added."""
        mass, dtype = self._factor * self._mass, self._total.dtype
        self._total.addcmul_(mass.to(dtype).unsqueeze(-1), self._rows.to(dtype))
        return self._total.addr_(mass.to(dtype), self._center.to(dtype), alpha=-1)


def through_sketch(of_sketch: Tensor, signs: Tensor, into: Tensor | None = None) -> Tensor:
    """The derivative by W from that by its sketch: ``of_sketch R^T / sqrt(P)``.

    Args:
        of_sketch: shape ``(C, P)``.
        signs: R, shape ``(m, P)``.
        into: the gradient to add to, shape ``(C, m)``; None for a new one.
    """
    dtype = of_sketch.dtype if into is None else into.dtype
    scaled, back = (of_sketch / math.sqrt(signs.shape[1])).to(dtype), signs.T.to(dtype)
    return scaled @ back if into is None else into.addmm_(scaled, back)


def of_logits(
    p: Tensor, amount: Tensor, vectors: ClassVectors, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """``a_i p_ik (v_ik - sum_j p_ij v_ij)`` and ``a_i p_ik``, shapes ``(n, C)``; p is overwritten.

    Args:
        p: probabilities, shape ``(n, C)``.
        amount: ``a_i = c_i ||phi_i||^2``, shape ``(n,)``.
        vectors: of the classes.
        mean: their centered mean under p, shape ``(n, m)``.
        variance: theirs under p, shape ``(n,)``.
    """
    v = torch.addmm(vectors.squares, mean, vectors.rows.T, alpha=-2)  # up to a constant a row
    p_v = (variance - (mean * (mean + 2 * vectors.center)).sum(-1)).unsqueeze(-1)
    weighted = p.mul_(amount.unsqueeze(-1))
    return v.sub_(p_v).mul_(weighted), weighted


class _ChunkedFlatness(torch.autograd.Function):
    """kappa, with probabilities that exist a chunk at a time and are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, z: Tensor, w: Tensor, c: Tensor, signs: Tensor | None) -> Tensor:
        vectors = ClassVectors.of(w, signs, phi.dtype)
        kappa = phi.new_zeros(())
        for rows in chunks_of(c.nonzero().squeeze(1), *z.shape):
            p = take(z, rows).softmax(-1, phi.dtype)
            variance = vectors.variance(p, vectors.mean(p))
            kappa += (take(c, rows) * take(phi, rows).square().sum(-1)) @ variance
        ctx.save_for_backward(phi, z, w, c, signs)
        return kappa

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        phi, z, w, c, signs = ctx.saved_tensors
        vectors = ClassVectors.of(w, signs, phi.dtype)
        to_phi, to_z, to_w, *_ = ctx.needs_input_grad
        of_phi = torch.zeros_like(phi) if to_phi else None
        of_z = torch.zeros_like(z) if to_z else None
        of_w = WeightGradient(vectors.rows, vectors.center, torch.ones_like(gradient)) if to_w else None
        c = gradient * c
        for rows in chunks_of(c.nonzero().squeeze(1), *z.shape):
            p, c_, phi_ = take(z, rows).softmax(-1, phi.dtype), take(c, rows), take(phi, rows)
            mean = vectors.mean(p)
            variance = vectors.variance(p, mean)
            if of_phi is not None:
                of_phi[rows] = (2 * c_ * variance).unsqueeze(-1) * phi_
            part, weighted = of_logits(p, c_ * phi_.square().sum(-1), vectors, mean, variance)
            if of_z is not None:
                of_z[rows] = part.to(z.dtype)
            if of_w is not None:
                of_w.add(weighted, mean)
            del p, part, weighted  # before the next chunk needs the room
        total = None if of_w is None else of_w.finish()
        if total is not None:
            total = (total if signs is None else through_sketch(total, signs)).to(w.dtype)
        return of_phi, of_z, total, None, None


def chunks_of(rows: Tensor | None, count: int, classes: int) -> Iterator[Tensor | slice]:
    """Numbers of rows, a chunk at a time; slices where all count.

    A chunk has at most ``CHUNK_ELEMENTS`` logits, and at most a quarter of them all unless they are few.

    Args:
        rows: numbers of the rows that count, or None for all.
        count: N, the number of all rows.
        classes: C.

    Examples:
        >>> import torch
        >>> list(chunks_of(torch.tensor([1, 3]), 4, 5)), list(chunks_of(None, 9, 2**20))
        ([tensor([1, 3])], [slice(0, 2, None), ..., slice(8, 9, None)])
    """
    # Four chunks or more: together with the gradients of the logits they stay below what a loss takes for itself.
    size = max(1, min(CHUNK_ELEMENTS, max(_AT_ONCE, count * classes // 4)) // classes)
    if rows is None or rows.numel() == count:
        yield from (slice(start, min(start + size, count)) for start in range(0, count, size))
    elif rows.numel():
        yield from rows.split(size)


def take(t: Tensor, rows: Tensor | slice) -> Tensor:
    """The given rows of a tensor; a view where they are a slice."""
    return t[rows] if isinstance(rows, slice) else t.index_select(0, rows)


def _parts(rows: Tensor) -> Sequence[Tensor]:
    return rows.split(max(1, CHUNK_ELEMENTS // max(1, rows.shape[1])))
