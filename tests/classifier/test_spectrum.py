"""Coordinates of the solver: the spectrum of the features, and how many steps it spares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_fam.classifier.objective import Objective
from hf_fam.classifier.solver import solve
from hf_fam.classifier.spectrum import Spectrum
from hf_fam.classifier.training_set import TrainingSet


def training_set(size: int, width: int, classes: int = 3, center: bool = True) -> TrainingSet:
    """Features whose variances fall from 100 to 1, all classes alike, random weights."""
    features = torch.randn(size, width, dtype=torch.float64) * torch.logspace(1, 0, width, dtype=torch.float64) + 1
    weights = torch.rand(size, dtype=torch.float64) + 0.1
    return TrainingSet.of(features, torch.arange(size) % classes, weights / weights.sum(), classes, center)


def covariance(data: TrainingSet) -> Tensor:
    centered = data.features - data.origin
    return (centered.T * data.weights) @ centered / data.scale**2


def test_directions_are_eigenvectors_of_the_covariance() -> None:
    """Exactly, if they are all but one of the features, and the last one is constant."""
    data = training_set(40, 12)
    data = TrainingSet.of(torch.cat([data.features, torch.ones(40, 1)], 1), data.classes, data.weights, 3, center=True)
    found = Spectrum.of(data, directions=12)
    values, vectors = torch.linalg.eigh(covariance(data))
    torch.testing.assert_close(found.variances, values[1:])
    torch.testing.assert_close((found.directions.T @ vectors[:, 1:]).abs(), torch.eye(12, dtype=torch.float64))
    assert found.rest == pytest.approx(0, abs=1e-12)


def test_few_features_count_as_alike() -> None:
    found = Spectrum.of(training_set(40, 12))
    assert found.directions.shape == (12, 0) and found.rest == 1


def test_of_many_directions_the_leading_ones_are_kept() -> None:
    data = training_set(3000, 80)
    found, values = Spectrum.of(data), torch.linalg.eigvalsh(covariance(data)).flip(0)
    torch.testing.assert_close(found.variances.flip(0)[:5], values[:5], rtol=0.05, atol=0)
    assert found.rest == pytest.approx(float(80 - found.variances.sum()) / (80 - len(found.variances)))


def test_a_part_of_many_samples_is_enough() -> None:
    data = training_set(20_000, 5)
    values = torch.linalg.eigvalsh(covariance(data))[1:]
    torch.testing.assert_close(Spectrum.of(data, directions=4).variances, values, rtol=0.2, atol=0)


def test_coordinates_and_parameters_are_inverse() -> None:
    data = training_set(50, 80)
    coordinates = Spectrum.of(data).coordinates(Objective(data, 0.01, 0.1))
    vector = np.random.default_rng().normal(size=3 * 81)
    np.testing.assert_allclose(coordinates.of_parameters(coordinates.to_parameters(vector)), vector, atol=1e-10)


def test_second_derivatives_at_zero_are_one() -> None:
    data = training_set(30, 7)
    objective = Objective(data, 0.05, 0.1)
    exact = Spectrum(*reversed(torch.linalg.eigh(covariance(data))), rest=0.0)
    coordinates = exact.coordinates(objective)

    def gradient(point: np.ndarray) -> np.ndarray:
        return coordinates.to_parameters(objective(coordinates.to_parameters(point))[1])

    step = 1e-5
    rows = [(gradient(step * unit) - gradient(-step * unit)) / (2 * step) for unit in np.eye(3 * 8)]
    between_classes = np.eye(3) - 1 / 3
    expected = np.zeros((24, 24))
    expected[:21, :21] = np.kron(between_classes, np.eye(7))
    expected[21:, 21:] = between_classes
    np.testing.assert_allclose(np.stack(rows), expected, atol=1e-5)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("strength", [1e-3, 1e-5])
def test_the_minimum_is_the_same_in_fewer_steps(strength: float, center: bool) -> None:
    data = training_set(300, 60, center=center)
    objective, start = Objective(data, strength, 0.1), np.zeros(3 * 61)
    spectrum = Spectrum.of(data)
    isotropic = Spectrum(spectrum.directions, torch.ones_like(spectrum.variances), 1.0)
    expected = solve(objective, start, isotropic, tol=1e-8, max_iter=10_000)
    found = solve(objective, start, spectrum, tol=1e-8, max_iter=10_000)
    assert found.value == pytest.approx(expected.value, abs=1e-10)
    assert found.steps < 0.8 * expected.steps


def test_an_expected_decrease_ends_it_early() -> None:
    data = training_set(300, 40)
    objective, start, spectrum = Objective(data, 1e-3, 0.1), np.zeros(3 * 41), Spectrum.of(data)
    exact = solve(objective, start, spectrum, tol=1e-8, max_iter=10_000)
    early = solve(objective, start, spectrum, tol=0.0, max_iter=10_000, decrease=1e-4)
    assert early.steps < exact.steps and 0 < early.value - exact.value < 1e-3
    assert solve(objective, exact.parameters, spectrum, tol=0.0, max_iter=10, decrease=1e-4).steps == 0
