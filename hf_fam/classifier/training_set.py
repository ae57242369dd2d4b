"""The data of a fit: features on their device, classes as numbers, weights that sum to one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of one temporary array. Small enough for a CPU's cache, large enough for its overhead.
_ELEMENTS = {"cpu": 2**17}
_ELEMENTS_ELSEWHERE = 2**24


@dataclass(frozen=True)
class TrainingSet:
    """Features with their classes and weights.

    Attributes:
        features: of shape (n, m).
        classes: the class of each sample, from 0 to ``n_classes - 1``, of shape (n,).
        weights: of shape (n,), with sum one.
        n_classes: number of classes.
        origin: what the features are measured from, of shape (m,): their mean, or zeros.
        squared_norms: of the features, measured from the origin, of shape (n,).
    """

    features: Tensor
    classes: Tensor
    weights: Tensor
    n_classes: int
    origin: Tensor
    squared_norms: Tensor

    @classmethod
    def of(cls, features: Tensor, classes: Tensor, weights: Tensor, n_classes: int, center: bool) -> TrainingSet:
        """Return the training set of features, classes and weights.

        Args:
            features: of shape (n, m).
            classes: of shape (n,).
            weights: of shape (n,), with sum one.
            n_classes: number of classes.
            center: measure the features from their mean.
        """
        mean = weighted_mean(features, weights)
        origin = mean if center else torch.zeros_like(mean)
        norms = [(features[rows] - origin).square().sum(1) for rows in chunks(features, features.shape[1])]
        return cls(features, classes, weights, n_classes, origin, torch.cat(norms))

    @property
    def scale(self) -> float:
        """The root mean square of a feature, all features together."""
        return math.sqrt(float((self.weights * self.squared_norms).sum()) / self.features.shape[1])


def weighted_mean(features: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of features, of shape (m,).

    Args:
        features: of shape (n, m).
        weights: of shape (n,), with sum one.
    """
    return weights @ features


def chunks(features: Tensor, width: int) -> Iterator[slice]:
    """Yield slices of rows, so that an array of as many rows and some width is small.

    Args:
        features: of shape (n, m).
        width: columns of the temporary array.
    """
    rows = max(_ELEMENTS.get(features.device.type, _ELEMENTS_ELSEWHERE) // width, 1)
    for first in range(0, len(features), rows):
        yield slice(first, first + rows)
