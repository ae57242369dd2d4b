"""Smoothed probabilities, which keep the flatness of a confident head from vanishing.

kappa of a head weighs the classes by the curvature of the loss, which vanishes as a probability approaches 0 or 1. The
smoothed kappa takes the curvature at probabilities that are mixed with the uniform distribution (docs/smoothing.md):

    softmax:  q = (1 - eps) p + eps / C,    curvature  c (diag q - q q^T)
    sigmoid:  q = (1 - eps) p + eps / 2,    curvature  c q (1 - q)
"""

from __future__ import annotations

from torch import Tensor

from ..calculus.derivatives import wide
from ..inputs.text import quote

# What the trainers use where only a softmax or sigmoid head is trained (recipes/smoothing/default.py).
DEFAULT_SMOOTHING = 0.1


class UndefinedSmoothing(ValueError):
    """The loss has no smoothed curvature."""


def check_smoothing(name: str, value: object) -> None:
    """Refuse a value of eps that is not a number of at least 0 and below 1.

    Args:
        name: name of the argument.
        value: its value.

    Raises:
        ValueError: names the argument and what to do.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name}={quote(value)}: give a number of at least 0 and below 1, for example 0.1.")


def smoothed_sigmoid_curvature(logits: Tensor, item_weights: Tensor, smoothing: float) -> Tensor:
    """Return ``c q (1 - q)``, in the graph, the shape of the logits.

    Args:
        logits: z.
        item_weights: c, the shape of the logits.
        smoothing: eps.

    Examples:
        >>> import torch
        >>> smoothed_sigmoid_curvature(torch.tensor([0.0, 100.0]), torch.ones(2), 0.1)  # .5 * .5 and .05 * .95
        tensor([0.2500, 0.0475])
    """
    q = (1 - smoothing) * logits.to(wide(logits.dtype)).sigmoid() + smoothing / 2
    return item_weights * q * (1 - q)


def smoothed_softmax_product(logits: Tensor, item_weights: Tensor, vector: Tensor, smoothing: float) -> Tensor:
    """Return ``c (diag q - q q^T) v``, in the graph, the shape of the logits.

    Args:
        logits: z, shape ``(..., C)``.
        item_weights: c, shape ``(...)``.
        vector: v, the shape of the logits.
        smoothing: eps.

    Examples:
        >>> import torch
        >>> smoothed_softmax_product(torch.tensor([[100.0, 0.0]]), torch.ones(1), torch.tensor([[1.0, 0.0]]), 0.1)
        tensor([[ 0.0475, -0.0475]])
    """
    q = (1 - smoothing) * logits.to(wide(logits.dtype)).softmax(-1) + smoothing / logits.shape[-1]
    v = vector.to(q.dtype)
    return item_weights.unsqueeze(-1) * q * (v - (q * v).sum(-1, keepdim=True))
