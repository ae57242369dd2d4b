"""Check from its gradient whether a loss can be softmax cross-entropy with hard labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calculus.derivatives import wide
from .loss_derivatives import weights_from_gradient

# Largest distance between the gradient and the expected one, relative to the gradient.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

# At most this many rows are checked.
_MAX_ROWS = 256


def is_hard_label_gradient(gradient: Tensor, logits: Tensor) -> bool:
    """Return True if ``g = c (p - e_y)`` for every row, with its own c >= 0 and y.

    c is the weight of the row and y its label. This is the gradient of softmax cross-entropy with hard labels. Label
    smoothing, soft labels, sigmoid, squared errors and preference losses have another gradient. The test is necessary
    but not sufficient: focal loss and losses that couple rows may pass it. With two classes, every loss of the
    difference of the logits passes. At most 256 rows are checked. The check waits for the device.

    Args:
        gradient: g = dL/dz, shape ``(..., C)``.
        logits: z, shape ``(..., C)``.

    Examples:
        >>> z, y = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 0, 1])
        >>> def gradient_of(**options):
        ...     return torch.autograd.grad(torch.nn.functional.cross_entropy(z, y, **options), z)[0]
        >>> is_hard_label_gradient(gradient_of(), z), is_hard_label_gradient(gradient_of(label_smoothing=0.1), z)
        (True, False)
    """
    tolerance = max(_TOLERANCE[gradient.dtype], _TOLERANCE[logits.dtype])
    dtype = wide(logits.dtype)
    g, z = gradient.detach().flatten(0, -2), logits.detach().flatten(0, -2)
    rows = g.any(-1).nonzero().squeeze(-1)
    rows = rows[:: max(1, len(rows) // _MAX_ROWS)]
    g, p = g[rows].to(dtype), z[rows].to(dtype).softmax(-1)
    if not len(rows) or not bool(g.isfinite().all()):
        return True  # no gradient, or a step that a gradient scaler skips
    positive = g > 0
    eps = torch.finfo(dtype).eps
    # If the label is almost certain, the gradient contains only rounding errors.
    rounding = max(torch.finfo(gradient.dtype).eps, torch.finfo(logits.dtype).eps)
    is_precise = (p * positive).sum(-1) > max(1000 * eps, 10 * rounding if rounding > eps else 0.0)
    g, p = g[is_precise], p[is_precise]
    if not len(g):
        return True
    if bool(((g < 0).sum(-1) > 1).any()):
        return False
    c = weights_from_gradient(g, p)
    label = g.argmin(-1, keepdim=True)
    expected = (c.unsqueeze(-1) * p).scatter_add(-1, label, -c.unsqueeze(-1))
    norm = torch.linalg.vector_norm
    return bool(norm(g - expected) <= tolerance * norm(g) + max(10 * eps, rounding) * norm(c))
