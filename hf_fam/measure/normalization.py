"""Divide features by their standard deviation over the data and multiply the columns of W: the same function.

A feature that is constant over the data (a dead unit) acts like a bias, and is left out like the bias. With any other
convention, kappa would depend on the arbitrary scale of dead units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..layer.linear_map import ConvolutionMap, LinearMap


def feature_axis(linear_map: LinearMap) -> int:
    """Return the dimension that counts the features; the channels of a convolution.

    All positions of a channel have the same values, so the kernel's weights of a channel share one factor.
    """
    return -(linear_map.dimensions + 1) if isinstance(linear_map, ConvolutionMap) else -1


def divide_by_deviation(features: Tensor, deviation: Tensor, linear_map: LinearMap) -> Tensor:
    """Return phi over its standard deviations, 0 where a deviation is 0."""
    inverse = torch.where(deviation > 0, 1 / deviation, torch.zeros_like(deviation))
    return features * inverse.to(features).view(-1, *[1] * (-feature_axis(linear_map) - 1))


def multiply_columns(linear_map: LinearMap, scale: Tensor) -> LinearMap:
    """Return the linear map with every column of W multiplied by a number.

    Args:
        linear_map: linear map of a layer.
        scale: shape ``(G m,)``, or one number a channel for convolutions.
    """
    weight = linear_map.weight.detach()
    repeated = linear_map.in_features * linear_map.groups // len(scale)
    by_group = scale.to(weight).repeat_interleave(repeated).view(linear_map.groups, -1)
    multiplied = weight * by_group.repeat_interleave(len(weight) // linear_map.groups, 0)
    result = copy.copy(linear_map)
    result.stored, result.matrix = lambda: multiplied, lambda w: w
    return result


class FeatureDeviation:
    """Standard deviation of every feature (every channel, for convolutions) over the data, from sums in float64.

    Examples:
        >>> import torch
        >>> from hf_fam.layer.linear_map import RowMap
        >>> deviation = FeatureDeviation(RowMap(1, 2, lambda: torch.ones(1, 2)))
        >>> deviation.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> deviation.result(lambda t: t)
        tensor([1., 0.], dtype=torch.float64)
    """

    def __init__(self, linear_map: LinearMap) -> None:
        self._axis = feature_axis(linear_map)
        channels = getattr(linear_map, "in_channels", linear_map.in_features)
        self._sums = torch.zeros(3, channels, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add the features of one call, in the layer's layout."""
        x = features.detach().double().cpu().movedim(self._axis, -1).flatten(0, -2)
        self._sums += torch.stack([x.sum(0), x.square().sum(0), torch.full_like(x[0], len(x))])

    def result(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the population's standard deviations, 0 for a constant feature.

        Args:
            reduce: function that sums a tensor over processes.
        """
        total, squares, count = reduce(self._sums)
        mean = total / count
        variance = squares / count - mean.square()
        noise = 1e-12 * (squares / count)  # what cancellation leaves of a constant
        return torch.where(variance > noise, variance.clamp_min(0).sqrt(), torch.zeros_like(variance))
