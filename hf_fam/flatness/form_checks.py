"""Cheap checks, in every step, that a loss still has the form that was recognized.

The closed forms compute one column of the Hessian or one gradient anyway. More of its entries are known than the item
weights need. All results stay on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calculus.derivatives import vector_products, wide

# The largest allowed deviation, relative to the tolerance with which a form is recognized.
_SLACK = 10.0

# The largest allowed rounding error of the entries that cancel, in units of the item weight's last digit.
_ROUNDING = 32.0


def column_is_off(column: Tensor, p: Tensor, c: Tensor, top: Tensor, tolerance: float) -> Tensor:
    """Return whether a column of the Hessian differs from ``c p_k (e_k - p)``, as a scalar of bool.

    Args:
        column: H e_k of every row, shape ``(..., C)``.
        p: softmax(z), shape ``(..., C)``.
        c: item weights, shape ``(...)``.
        top: k, the most probable class, shape ``(...)``.
        tolerance: largest deviation, relative to the column.

    Examples:
        >>> p, c, top = torch.tensor([[0.5, 0.3, 0.2]]), torch.ones(1), torch.tensor([0])
        >>> column = 0.5 * (torch.tensor([[1.0, 0.0, 0.0]]) - p)
        >>> column_is_off(column, p, c, top, 1e-4), column_is_off(column + 0.1, p, c, top, 1e-4)
        (tensor(False), tensor(True))
    """
    norm, k = torch.linalg.vector_norm, top.unsqueeze(-1)
    others = column.scatter(-1, k, 0.0)
    # The entry of the top class cancels in confident rows, the others are precise in all rows.
    deviation = torch.addcmul(others, (c * p.gather(-1, k).squeeze(-1)).unsqueeze(-1), p.scatter(-1, k, 0.0))
    rounding = _ROUNDING * torch.finfo(column.dtype).eps * norm(c)
    allowed = _SLACK * tolerance
    return (norm(deviation) > allowed * norm(others)) | (norm(column.sum(-1)) > allowed * norm(column) + rounding)


def gradient_squares(g: Tensor, p: Tensor, c: Tensor) -> Tensor:
    """Return the squared norms of ``g - c (p - onehot)``, g and c, shape ``(3,)``.

    Args:
        g: dL/dz, shape ``(n, C)``, with item weights that are not negative. The label is its smallest entry.
        p: softmax(z), shape ``(n, C)``.
        c: item weights, shape ``(n,)``.
    """
    deviation = torch.addcmul(g, c.unsqueeze(-1), p, value=-1)
    deviation.scatter_add_(-1, g.argmin(-1, keepdim=True), c.unsqueeze(-1))
    return torch.stack([torch.linalg.vector_norm(t).square() for t in (deviation, g, c)])


def gradient_is_off(squares: Tensor, tolerance: float) -> Tensor:
    """Return whether a gradient differs from ``c (p - onehot)``, as a scalar of bool.

    Args:
        squares: sum of `gradient_squares` over all rows.
        tolerance: largest deviation, relative to the gradient.

    Examples:
        >>> p, c = torch.tensor([[0.5, 0.3, 0.2]]), torch.ones(1)
        >>> hard, smooth = torch.tensor([[-0.5, 0.3, 0.2]]), torch.tensor([[-0.4, 0.25, 0.15]])
        >>> [bool(gradient_is_off(gradient_squares(g, p, c), 1e-4)) for g in (hard, smooth)]
        [False, True]
    """
    deviation, g, c = squares.sqrt()
    return deviation > _SLACK * tolerance * g + _ROUNDING * torch.finfo(squares.dtype).eps * c


def elementwise_is_off(first: Tensor, logits: Tensor, number: int, tolerance: float) -> Tensor:
    """Return whether a loss couples logits, as a scalar of bool.

    One product with a vector that is 0 at half of the logits: there, the product must vanish. The halves are the bits
    of the logits' numbers, so that every pair is separated after a few steps.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., C)``.
        logits: z, shape ``(..., C)``.
        number: number of the step.
        tolerance: largest product at the others, relative to the whole.

    Examples:
        >>> z = torch.randn(4, 3, requires_grad=True)
        >>> for loss in (z.square().sum(), z.exp().sum().log()):
        ...     (first,) = torch.autograd.grad(loss, z, create_graph=True)
        ...     print(elementwise_is_off(first, z, 0, 1e-4))
        tensor(False)
        tensor(True)
    """
    bits = max(1, (logits.numel() - 1).bit_length())
    numbers = torch.arange(logits.numel(), device=logits.device).view(logits.shape)
    is_chosen = (numbers >> (number % bits)) & 1 == 0
    (product,) = vector_products([first], [logits], [is_chosen.to(logits.dtype)], create_graph=False)
    product = product.to(wide(product.dtype))
    norm = torch.linalg.vector_norm
    return norm(product.masked_fill(is_chosen, 0.0)) > _SLACK * tolerance * norm(product)
