"""The directions in which the features vary most: in these coordinates a solver needs fewer steps.

At zero weights all classes are equally probable. Let S be the covariance of the features. The second derivatives of the
objective by the weights of a class are then (S + 2 λ tr S · 1) / C. A few eigenvectors of S suffice, because the
penalty bounds the others from below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .objective import Float64s, Objective
from .training_set import TrainingSet, chunks

# Fewer features need no guidance: an evaluation costs next to nothing.
_DIRECTIONS = 32
# Enough samples for directions that only guide a solver.
_SAMPLES = 4096
_ROUNDS = 2
# The smallest variance, as a share of the largest.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenvectors of the covariance of features of unit mean square.

    Attributes:
        directions: orthonormal, of shape (m, k), float64, on the CPU.
        variances: the variance along each, of shape (k,).
        rest: the mean variance along all others.
    """

    directions: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def of(cls, data: TrainingSet, directions: int = _DIRECTIONS) -> Spectrum:
        """Return the spectrum of a training set, of a part of it if it is large.

        Args:
            data: the training set.
            directions: how many eigenvectors. With no more features than that, all variances count as one.

        Source:
            Subspace iteration from random directions: Halko, Martinsson and Tropp 2011, "Finding Structure with
            Randomness", algorithm 4.4.
        """
        step = -(-len(data.features) // _SAMPLES)
        features, weights = data.features[::step], data.weights[::step]
        width = features.shape[1]
        if width <= directions:
            return cls(torch.zeros(width, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), 1.0)
        basis = torch.randn(width, directions, generator=torch.Generator().manual_seed(0))
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(_covariance_times(features, weights, data.origin, basis)).Q
        inner = basis.T @ _covariance_times(features, weights, data.origin, basis)
        variances, rotation = torch.linalg.eigh((inner + inner.T).double() / 2)
        variances = variances.clamp_min(0) / data.scale**2
        rest = max(width - float(variances.sum()), 0.0) / (width - directions)
        return cls(basis.double() @ rotation, variances, rest)

    def coordinates(self, objective: Objective) -> Coordinates:
        """Return coordinates in which the second derivatives of an objective are about one at zero.

        Args:
            objective: of the training set, or of a part of it.
        """
        width = objective.shape[1]
        floor = _FLOOR * max([self.rest, *self.variances.tolist()])
        added = 2 * objective.strength * width + floor
        outside = ((self.rest + added) / objective.shape[0]) ** -0.5
        inside = ((self.variances + added) / objective.shape[0]) ** -0.5
        return Coordinates(self.directions, outside, inside, objective.shape)


@dataclass(frozen=True)
class Coordinates:
    """A linear map between coordinates for a solver and the parameters of an objective. It is symmetric.

    Attributes:
        directions: of shape (m, k).
        outside: the factor of what is orthogonal to all directions.
        inside: the factor along each direction, of shape (k,).
        shape: of the weights, (C, m).
    """

    directions: Tensor
    outside: float
    inside: Tensor
    shape: tuple[int, int]

    def to_parameters(self, coordinates: Float64s) -> Float64s:
        """Return the parameters; also the gradient by coordinates, of the gradient by parameters."""
        return self._map(coordinates, self.outside, self.inside, self.shape[0] ** 0.5)

    def of_parameters(self, parameters: Float64s) -> Float64s:
        """Return the coordinates of parameters."""
        return self._map(parameters, 1 / self.outside, 1 / self.inside, self.shape[0] ** -0.5)

    def _map(self, vector: Float64s, outside: float, inside: Tensor, of_intercepts: float) -> Float64s:
        size = self.shape[0] * self.shape[1]
        weight = torch.from_numpy(np.ascontiguousarray(vector[:size])).reshape(self.shape)
        along = (weight @ self.directions) * (inside - outside)
        mapped = torch.addmm(weight, along, self.directions.T, beta=outside)
        return np.concatenate([mapped.numpy().ravel(), of_intercepts * vector[size:]])


def _covariance_times(features: Tensor, weights: Tensor, origin: Tensor, directions: Tensor) -> Tensor:
    """Return the product of the covariance, about an origin, with directions on the CPU, without making the former."""
    directions = directions.to(features)
    result = torch.zeros_like(directions)
    for rows in chunks(features, features.shape[1]):
        centered = features[rows] - origin
        result.addmm_(centered.T, (centered @ directions) * weights[rows, None])
    return result.cpu() / weights.sum().cpu()
