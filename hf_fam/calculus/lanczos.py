"""The largest eigenvalue of many symmetric matrices at once, from matrix-vector products (Lanczos 1950)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Iterations from one convergence check to the next.
_CHECK_EVERY = 4


class Eigenvalues(NamedTuple):
    """Eigenvalues with their error bounds, one entry for each matrix.

    Attributes:
        values: eigenvalues, or lower bounds of the largest ones where they did not converge; shape ``(b,)``.
        residuals: an eigenvalue of the matrix lies within this distance; shape ``(b,)``.
        converged: the residual is below the tolerance, or the space that the start vector reaches is exhausted;
            boolean, shape ``(b,)``.
    """

    values: Tensor
    residuals: Tensor
    converged: Tensor


def largest_eigenvalues(
    product: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int = 100, tolerance: float = 1e-10
) -> Eigenvalues:
    """Return the largest eigenvalue of every matrix of a stack.

    The largest one, not the one of largest absolute value.

    All matrices take a step together, so that one pass over the data serves all of them. Bases are kept and
    orthogonalized in full: memory for ``iterations`` copies of ``start`` at most.

    Args:
        product: the matrices times one vector each, shapes ``(b, n)`` to ``(b, n)``.
        start: random vectors, shape ``(b, n)``.
        iterations: at most this many products.
        tolerance: stop when every residual is below this fraction of its matrix's norm (as far as it is known). What
            rounding leaves in the dtype of ``start`` is always tolerated.

    Examples:
        >>> import torch
        >>> stack = torch.stack([torch.diag(torch.tensor([1.0, 5.0, -9.0])), -torch.eye(3)])
        >>> result = largest_eigenvalues(lambda v: torch.einsum("bij,bj->bi", stack, v), torch.ones(2, 3))
        >>> [round(float(v), 4) for v in result.values], result.converged.tolist()
        ([5.0, -1.0], [True, True])
    """
    n = start.shape[-1]
    tiny = torch.finfo(start.dtype).eps
    tolerance = max(tolerance, 10 * tiny)
    basis = [start / torch.linalg.vector_norm(start, dim=-1, keepdim=True).clamp_min(tiny)]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    exhausted = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for k in range(min(iterations, n)):
        image = product(basis[k])
        alpha = (image * basis[k]).sum(-1)
        # If its Krylov space is exhausted, a matrix continues with zero vectors. Its first value stays in its range.
        diagonal.append(torch.where(exhausted, diagonal[0], alpha) if diagonal else alpha)
        for _ in range(2):  # once is not enough in floating point
            for q in basis:
                image = image - (image * q).sum(-1, keepdim=True) * q
        beta = torch.linalg.vector_norm(image, dim=-1)
        scale = torch.stack([d.abs() for d in diagonal] + off_diagonal).amax(0)
        exhausted = exhausted | (beta <= 100 * tiny * scale)
        beta = torch.where(exhausted, torch.zeros_like(beta), beta)
        last = k + 1 == min(iterations, n)
        if last or (k + 1) % _CHECK_EVERY == 0 or bool(exhausted.all()):
            values, residuals = _ritz(diagonal, off_diagonal, beta)
            converged = exhausted | (residuals <= tolerance * scale) | (k + 1 == n)
            if last or bool(converged.all()):
                break
        off_diagonal.append(beta)
        length = torch.where(exhausted, torch.ones_like(beta), beta).unsqueeze(-1)  # which may be tiny: so is H
        basis.append(torch.where(exhausted.unsqueeze(-1), torch.zeros_like(image), image / length))
    return Eigenvalues(values, residuals, converged)


def _ritz(diagonal: list[Tensor], off_diagonal: list[Tensor], beta: Tensor) -> tuple[Tensor, Tensor]:
    tridiagonal = torch.diag_embed(torch.stack(diagonal, -1))
    if off_diagonal:
        neighbors = torch.stack(off_diagonal, -1)
        tridiagonal = tridiagonal + torch.diag_embed(neighbors, 1) + torch.diag_embed(neighbors, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    return values[:, -1], (beta * vectors[:, -1, -1]).abs()
