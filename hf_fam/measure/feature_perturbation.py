"""Random perturbations ``phi + A phi`` of the features that enter a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import wide
from ..layer.feature_layer import FeatureLayer
from ..layer.linear_map import LinearMap

ORTHOGONAL, GAUSSIAN, RANK_ONE = "orthogonal", "gaussian", "rank_one"
MATRICES = (ORTHOGONAL, GAUSSIAN, RANK_ONE)


def random_matrix(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """Return a random m x m matrix, in float64.

    Its entries have mean 0 and variance 1/m.

    Args:
        kind: one of ``MATRICES``.
        size: m.
        generator: source of the random numbers.

    Examples:
        >>> import torch
        >>> q = random_matrix("orthogonal", 3, torch.Generator().manual_seed(0))
        >>> torch.allclose(q @ q.T, torch.eye(3, dtype=torch.float64))
        True
    """
    draw = {"generator": generator, "dtype": torch.float64}
    if kind == RANK_ONE:
        r, a = ((torch.rand(size, **draw) < 0.5).double() * 2 - 1 for _ in range(2))  # type: ignore[call-overload]
        return torch.outer(r, a) / math.sqrt(size)
    normal: Tensor = torch.randn(size, size, **draw)  # type: ignore[call-overload]
    if kind == GAUSSIAN:
        return normal / math.sqrt(size)
    q, upper = torch.linalg.qr(normal)
    return q * upper.diagonal().sign()  # with these signs the distribution is uniform (Mezzadri 2007)


@contextmanager
def perturbed(layer: FeatureLayer, matrices: Tensor) -> Iterator[None]:
    """Replace phi by ``phi + A phi`` for the layer inside the block.

    Args:
        layer: the feature layer.
        matrices: A of every group, shape ``(G, m, m)``.
    """

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        change = _perturbation(layer.linear_map, features, matrices)
        return output + layer.linear_map.outputs(change).to(output.dtype)

    handle = layer.module.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _perturbation(linear_map: LinearMap, features: Tensor, matrices: Tensor) -> Tensor:
    """Return ``W A phi`` of every row, channels last."""
    rows = linear_map.feature_rows(features)
    rows = rows.to(wide(rows.dtype)).unflatten(-1, (linear_map.groups, -1))
    return linear_map.times(torch.einsum("gij,...gj->...gi", matrices.to(rows.dtype), rows).flatten(-2))
