"""Item weights and curvatures of a loss, from its derivatives by the logits.

Softmax cross-entropy has the Hessian ``c (diag p - p p^T)`` and, with hard labels, the gradient ``c (p - onehot)``. An
elementwise loss has a diagonal Hessian.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..calculus.derivatives import vector_products, wide
from .chunks import row_chunks
from .form_checks import column_is_off, gradient_is_off, gradient_squares

# Largest distance between a Hessian-vector product and the expected one, relative to the product.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# float16: the largest scale of a row, as an exponent of 2. The first derivatives are already brought to 32.
_LARGEST_EXPONENT = 8


def tolerance_of(loss: Tensor, logits: Tensor) -> float:
    """Return the largest relative distance that rounding explains."""
    return max(_TOLERANCE[logits.dtype], _TOLERANCE[loss.dtype])  # models compute the loss in float32


def row_scales(logits: Tensor) -> Tensor | float:
    """Return powers of two that keep products with the Hessian of confident rows in float16's range.

    A product with a row of the Hessian is as small as the probability of the second class.

    Args:
        logits: z, shape ``(..., C)``.

    Returns:
        Shape ``(..., 1)``; 1 for other precisions than float16.
    """
    if logits.dtype != torch.float16:
        return 1.0
    second = logits.detach().float().log_softmax(-1).topk(2, dim=-1).values[..., 1:]
    return torch.exp2((-second / math.log(2)).floor().clamp(0, _LARGEST_EXPONENT)).to(logits.dtype)


def rounding_to_zero(product: Tensor) -> float:
    """Return the norm below which a product consists of entries that half precision rounds coarsely, or to 0."""
    if product.dtype != torch.float16:
        return 0.0
    info = torch.finfo(product.dtype)
    return info.smallest_normal * info.eps * math.sqrt(product.numel()) / _TOLERANCE[product.dtype]


def weights_from_product(first: Tensor, logits: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the item weights c of a softmax loss with any labels, shape ``(...)``, see `checked_weights`."""
    return checked_weights(first, logits, 1.0, create_graph=create_graph)[0]


def checked_weights(
    first: Tensor, logits: Tensor, tolerance: float, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the item weights c of a softmax loss with any labels, and whether the loss is not one.

    ``c_i = -(H e_k)_j / (p_k p_j)`` for the two most probable classes k and j.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., C)``.
        logits: z, shape ``(..., C)``.
        tolerance: see `form_checks.column_is_off`.
        create_graph: keep c in the graph, to check whether it depends on z.

    Returns:
        c, shape ``(...)``, and a scalar of bool.
    """
    p = (logits if create_graph else logits.detach()).to(wide(logits.dtype)).softmax(-1)
    (p_k, p_j), (k, j) = (t.unbind(-1) for t in p.topk(2, dim=-1))
    scales = row_scales(logits)
    e_k = torch.zeros_like(logits).scatter_(-1, k.unsqueeze(-1), 1) * scales
    (product,) = vector_products([first], [logits], [e_k], create_graph=create_graph)
    product = product.to(p.dtype) / scales
    c = safe_ratio(-product.gather(-1, j.unsqueeze(-1)).squeeze(-1), p_k * p_j)
    return c, column_is_off(product.detach(), p.detach(), c.detach(), k, tolerance)


def weights_from_gradient(first: Tensor, p: Tensor) -> Tensor:
    """Return the item weights c of a softmax loss with hard labels, shape ``(...)``.

    ``c_i = sum_{k: g_ik > 0} g_ik / sum_{k: g_ik > 0} p_ik``, because g = c p for all classes except the label. The
    result is constant.

    Args:
        first: g = dL/dz, shape ``(..., C)``.
        p: softmax(z), shape ``(..., C)``.
    """
    g = first.detach().to(p.dtype)
    positive = g > 0
    return safe_ratio((g * positive).sum(-1), (p.detach() * positive).sum(-1))


def weights_in_chunks(first: Tensor, logits: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return `weights_from_gradient`, for a chunk of the rows at a time, and whether the loss has other ones.

    Args:
        first: g = dL/dz, shape ``(..., C)``.
        logits: z, shape ``(..., C)``.
        tolerance: see `form_checks.gradient_is_off`.

    Returns:
        c, shape ``(...)``, and a scalar of bool.
    """
    g, z, dtype = first.reshape(-1, first.shape[-1]), logits.reshape(-1, logits.shape[-1]), wide(logits.dtype)
    sign, _ = split_gradient(g)
    weights, squares = [], torch.zeros(3, dtype=dtype, device=z.device)
    for rows in row_chunks(None, *z.shape):
        g_chunk, p = sign * g[rows].to(dtype), z[rows].softmax(-1, dtype)
        weights.append(weights_from_gradient(g_chunk, p))
        squares += gradient_squares(g_chunk, p, weights[-1])
    return (sign * torch.cat(weights)).view(logits.shape[:-1]), gradient_is_off(squares, tolerance)


def split_gradient(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the common sign of the item weights of cross-entropy with hard labels, and ``|sum_{k != y} g_ik|``.

    In ``g = c (p - onehot)`` all entries but the label's have the sign of c. The label's entry is imprecise in
    confident rows, or 0, so the sign is that of several entries of a row. This does not wait for the device.

    Args:
        g: dL/dz, shape ``(N, C)``.

    Returns:
        1 or -1, a scalar, and sums of shape ``(N, 1)``.

    Examples:
        >>> p, y = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> [split_gradient(c * (p - y)) for c in (2, -2)]
        [(tensor(1.), tensor([[1.]])), (tensor(-1.), tensor([[1.]]))]
    """
    dtype = wide(g.dtype)
    sums, vote = [], torch.zeros((), dtype=dtype, device=g.device)
    for rows in row_chunks(None, *g.shape):
        positive, negative = (part.sum(-1, dtype=dtype) for part in (g[rows].clamp_min(0), g[rows].clamp_max(0)))
        vote += (positive - g[rows].amax(-1) + negative - g[rows].amin(-1)).sum()
        sums.append(torch.stack([positive, negative], -1))
    sign = torch.where(vote < 0, -1.0, 1.0).to(dtype)
    positive, negative = torch.cat(sums).split(1, -1)
    return sign, torch.where(sign > 0, positive, -negative)


def elementwise_curvature(first: Tensor, logits: Tensor) -> Tensor:
    """Return h = d2L/dz_ik^2 of an elementwise loss, in the graph.

    It is the product of the Hessian with ones.
    """
    return vector_products([first], [logits], [torch.ones_like(logits)])[0]


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the ratio, or 0 if the denominator underflows, as the item's kappa does."""
    tiny = torch.finfo(denominator.dtype).tiny
    return torch.where(denominator > tiny, numerator / denominator.clamp_min(tiny), torch.zeros_like(numerator))
