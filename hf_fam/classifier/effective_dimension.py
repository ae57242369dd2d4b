"""How many directions the features effectively vary in."""

from __future__ import annotations

import torch
from torch import Tensor

from .training_set import chunks, weighted_mean

_BLOCK = 128


def effective_dimension(features: Tensor, weights: Tensor | None = None) -> float:
    """Return (tr S)² / tr(S²), S being the covariance of the features.

    It is m for m uncorrelated features of one variance, and 1 if all samples are on a line. Scaling or rotating the
    features does not change it. It costs n · m · min(n, m) multiplications.

    Args:
        features: of shape (n, m), floating point.
        weights: of shape (n,), at least 0 with a sum above 0; None: all alike.

    Returns:
        A number from 1 to m; NaN if all samples are alike, or if squares are beyond the range of their precision.

    Examples:
        >>> effective_dimension(torch.eye(4, dtype=torch.float64))  # the corners of a tetrahedron, in 3 dimensions
        3.0...
    """
    if weights is None:
        weights = features.new_ones(len(features))
    weights = weights / weights.sum()
    mean = weighted_mean(features, weights)
    size, width = features.shape
    if size < width:  # the spectrum of the smaller matrix is the same
        rows = (features - mean) * weights.sqrt()[:, None]
        rows /= torch.linalg.vector_norm(rows)
        blocks = rows.split(_BLOCK)
        # The matrix is symmetric, so each pair of blocks is multiplied once.
        squares = [
            (2 - (i == j)) * (blocks[i] @ blocks[j].T).square().sum() for i in range(len(blocks)) for j in range(i + 1)
        ]
        return float(1 / torch.stack(squares).sum())
    matrix = features.new_zeros(width, width)
    for part in chunks(features, width):
        centered = features[part] - mean
        matrix.addmm_((centered * weights[part, None]).T, centered)
    return float(1 / (matrix / matrix.trace()).square().sum())
