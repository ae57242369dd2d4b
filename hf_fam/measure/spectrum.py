"""Largest eigenvalues of the row blocks of a layer's Hessian, and of the whole, by Lanczos iterations over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..calculus.derivatives import range_scale, wide
from ..calculus.lanczos import Eigenvalues, largest_eigenvalues
from ..calculus.saturation import first_derivatives
from ..flatness.row_blocks import MAX_NUMBERS, layer_product, row_block_products
from ..layer.feature_layer import Capture, FeatureLayer
from .layer_measurement import LayerMeasurement

# Residuals, relative to the norm, at which to stop: if a product is a pass over the data, and otherwise. The error of
# the eigenvalue is of the order of the residual's square.
_PASS_TOLERANCE, _TOLERANCE = 1e-3, 1e-12
_MOST_PASSES, _MOST_PRODUCTS = 40, 200


class DataPasses(Protocol):
    """An object that can pass over the data again."""

    def passes(self, layer: FeatureLayer, name: str) -> Iterator[tuple[Tensor, list[Capture], float]]:
        """Yield loss, captures and weight of every batch."""

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over processes."""


def largest_eigenvalues_of_rows(measurement: LayerMeasurement, data: DataPasses, total: float) -> Eigenvalues:
    """Return ``lambda_max(H_{s,s})`` of every row s of W, shapes ``(d,)``.

    Args:
        measurement: after the pass over the data.
        data: reads the data again if the row blocks were not collected.
        total: the sum of the weights of all items.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    blocks, layer = measurement.blocks, measurement.layer
    is_lost = torch.tensor([float(blocks is None or blocks.has_overflown)])
    if data.reduce(is_lost) == 0 and blocks is not None:
        kept_blocks = blocks

        def product(vectors: Tensor, start: int) -> Tensor:
            return data.reduce(kept_blocks.product(vectors, start)) / total

        return _in_chunks(product, measurement, _MOST_PRODUCTS, _TOLERANCE)

    def streamed(vectors: Tensor, start: int) -> Tensor:
        result = torch.zeros_like(vectors)
        for loss, captures, scale in data.passes(layer, f"kappa_max of {layer.name}"):
            features = [measurement.group_rows(c.features) for c in captures]
            z = [c.pre_activations for c in captures]
            measurement.products += len(vectors)
            derivative_scale = range_scale(loss, z)
            first = first_derivatives(loss, z, derivative_scale)
            result += scale / derivative_scale * row_block_products(first, features, z, vectors, start)
        return data.reduce(result) / total

    return _in_chunks(streamed, measurement, _MOST_PASSES, _PASS_TOLERANCE)


def largest_eigenvalue_of_layer(measurement: LayerMeasurement, data: DataPasses, total: float) -> Eigenvalues:
    """Return the largest eigenvalue of the Hessian by the whole weight.

    Shapes ``(1,)``.

    Args:
        measurement: after the pass over the data.
        data: reads the data again, once for every product.
        total: the sum of the weights of all items.
    """
    layer, shape = measurement.layer, measurement.weight.shape

    def product(vectors: Tensor) -> Tensor:
        result = vectors.new_zeros(shape)
        for loss, captures, scale in data.passes(layer, f"lambda_max of {layer.name}"):
            features = [measurement.group_rows(c.features) for c in captures]
            z = [c.pre_activations for c in captures]
            measurement.products += 1
            derivative_scale = range_scale(loss, z)
            first = first_derivatives(loss, z, derivative_scale)
            result += scale / derivative_scale * layer_product(first, features, z, vectors.view(shape))
        return data.reduce(result).view(1, -1) / total

    start = _start(measurement, 1, shape.numel())
    return largest_eigenvalues(product, start, iterations=_MOST_PASSES, tolerance=_PASS_TOLERANCE)


def _in_chunks(
    product: Callable[[Tensor, int], Tensor], measurement: LayerMeasurement, iterations: int, tolerance: float
) -> Eigenvalues:
    """Compute eigenvalues of as many rows at once as memory allows."""
    outputs, features = measurement.layer.out_features, measurement.layer.in_features
    rows_at_once = max(1, MAX_NUMBERS // (features * min(iterations, features)))
    starts = _start(measurement, outputs, features)
    results = []
    for first in range(0, outputs, rows_at_once):

        def of_chunk(vectors: Tensor, first: int = first) -> Tensor:
            return product(vectors, first)

        chunk = starts[first : first + rows_at_once]
        results.append(largest_eigenvalues(of_chunk, chunk, iterations=iterations, tolerance=tolerance))
    return Eigenvalues(*(torch.cat(parts) for parts in zip(*results, strict=True)))


def _start(measurement: LayerMeasurement, count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(measurement.seed)
    weight = measurement.weight
    return torch.randn(count, size, generator=generator, dtype=torch.float64).to(weight.device, wide(weight.dtype))
