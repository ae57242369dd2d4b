"""The Euclidean norm of each row, with derivatives that stay finite."""

from __future__ import annotations

import torch
from torch import Tensor

# Norms within this bound and its inverse need no scaling.
_SMALLEST = 1e-6


def row_norms(rows: Tensor) -> Tensor:
    """Return the norm over all dimensions but the first.

    Its derivatives of every order are 0 where a row is 0.

    Value and derivatives do not over- or underflow unless the rows themselves do.

    Args:
        rows: of shape (n, ...).

    Returns:
        Of shape (n,), in float32 or wider.
    """
    flat = rows.flatten(1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    # The norm does not depend on the scale, so its derivatives treat the scale as a constant.
    scale = flat.detach().abs().amax(1)
    if flat.device.type == "cpu":  # elsewhere, the question would wait for the device
        least, largest = (bound.item() for bound in scale.aminmax())
        if least > _SMALLEST and largest < 1 / _SMALLEST:  # squares and their sums are far from both ends of float32
            return torch.linalg.vector_norm(flat, dim=1)
    zero = scale == 0
    scale = scale.masked_fill(zero, 1)
    squares = (flat / scale[:, None]).square().sum(1)
    # Two selections, because the derivative of a root at 0 is infinite, and 0 times infinity is NaN.
    roots = torch.where(zero, 1, squares).sqrt()
    return torch.where(zero, 0, scale * roots)
