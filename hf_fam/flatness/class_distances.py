"""kappa of a head of few classes under softmax cross-entropy, from the distances between its classes.

With ``D_kl = ||w_k - w_l||^2`` and probabilities p,

    Var_{k~p}(w_k) = 1/2 sum_kl p_k p_l D_kl

is a sum of non-negative terms, so that it keeps the precision of the probabilities for confident rows. With smoothing
eps, ``q = (1 - eps) p + eps / C`` replaces p (docs/smoothing.md). It takes two
products with C x C matrices and half as many kernels as `flatness.softmax_head`. On a GPU, launching kernels is most
of the cost of a small head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Up to this many classes, C^2 m operations take a GPU less time than launching the kernels that they save.
_FEW_CLASSES = 256

# With more logits, memory counts for more than kernels.
_FEW_LOGITS = 2**20


def is_worth_distances(classes: int, rows: int, device: torch.device) -> bool:
    """Return True if products with C x C matrices are worth the kernels that they save.

    Examples:
        >>> import torch
        >>> [is_worth_distances(77, rows, torch.device(kind)) for kind in ("cpu", "cuda") for rows in (32, 128)]
        [False, True, True, True]
    """
    most = rows if device.type == "cpu" else max(rows, _FEW_CLASSES)
    return classes <= most and rows * classes <= _FEW_LOGITS


def flatness_from_distances(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    item_weights: Tensor,
    log_probabilities: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Return kappa of a head under softmax cross-entropy.

    Args:
        features: phi, shape ``(..., m)``.
        logits: z, shape ``(..., C)``, for the gradient alone.
        weight: W, shape ``(C, m)``.
        item_weights: c, shape ``(N,)``, constant.
        log_probabilities: log p, shape ``(N, C)``, constant, in float32 or wider.
        smoothing: eps, at least 0 and below 1.

    Returns:
        A scalar in the units of the loss, differentiable to features, logits and weight.

    Examples:
        >>> import torch
        >>> phi, W, z = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(1, 2)
        >>> flatness_from_distances(phi, z, W, torch.ones(1), z.log_softmax(-1))  # 1 * 4 * Var(+-1)
        tensor(4.)
    """
    dtype = log_probabilities.dtype
    phi, z = features.reshape(-1, features.shape[-1]).to(dtype), logits.reshape(-1, logits.shape[-1])
    result: Tensor = _FlatnessFromDistances.apply(
        phi, z, weight.to(dtype), item_weights.to(dtype), log_probabilities, smoothing
    )
    return result


class _FlatnessFromDistances(torch.autograd.Function):
    """kappa and its gradients by hand, in few kernels."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, z: Tensor, w: Tensor, c: Tensor, log_p: Tensor, eps: float) -> Tensor:
        rows = w - w[:1]  # a common offset changes no distance, and would cost precision
        gram = rows @ rows.T
        squares = gram.diagonal()
        distances = torch.sub(squares.unsqueeze(1) + squares, gram, alpha=2)  # exactly 0 on the diagonal
        p = log_p.exp()
        q = torch.rsub(p, eps / p.shape[1], alpha=eps - 1) if eps else p  # (1 - eps) p + eps / C
        mean_distances = q @ distances
        variances = _row_products(q, mean_distances)  # twice the variances
        a = c * _row_products(phi, phi)
        ctx.save_for_backward(phi, rows, c, a, p, q, mean_distances, variances)
        ctx.dtype, ctx.smoothing = z.dtype, eps
        return torch.addmv(a[:1], a.unsqueeze(0), variances, beta=0, alpha=0.5).squeeze(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        phi, rows, c, a, p, q, mean_distances, variances = ctx.saved_tensors
        needs_phi, needs_z, needs_w, *_ = ctx.needs_input_grad
        a = (gradient * a).unsqueeze(1)
        scaled_q = a * q
        grad_phi = grad_z = grad_w = None
        if needs_phi:
            grad_phi = (gradient * c * variances).unsqueeze(1) * phi
        if needs_z:  # dq_k / dz_l = (1 - eps) (p_k [k = l] - p_k p_l)
            distances, means, scaled_p = mean_distances, variances, scaled_q
            if ctx.smoothing:  # relative to the most probable class: its probability may round to 1
                distances = distances - distances.gather(1, p.argmax(1, keepdim=True))
                means, scaled_p = _row_products(p, distances), (1 - ctx.smoothing) * a * p
            grad_z = ((distances - means.unsqueeze(1)) * scaled_p).to(ctx.dtype)
        if needs_w:  # 2 sum_l M_kl (w_k - w_l); the diagonal must not drown the rest
            pairs = (scaled_q.T @ q).fill_diagonal_(0.0)
            grad_w = torch.addmm(pairs.sum(1, keepdim=True) * rows, pairs, rows, beta=2, alpha=-2)
        return grad_phi, grad_z, grad_w, None, None, None


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products of corresponding rows, shape ``(N,)``, in one kernel."""
    return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).view(-1)
