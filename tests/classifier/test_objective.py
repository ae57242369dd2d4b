"""The objective against a plain float64 reference: values, gradients, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from torch import Tensor

from hf_fam.classifier import training_set
from hf_fam.classifier.objective import Objective
from hf_fam.classifier.training_set import TrainingSet

CASES = [(2, 3, 20), (3, 40, 30), (10, 7, 60), (100, 13, 150)]


def plain(weight: Tensor, intercept: Tensor, data: TrainingSet, strength: float, smoothing: float) -> Tensor:
    """The definition, sample by sample, nothing rearranged."""
    total = torch.zeros((), dtype=torch.float64)
    classes = len(weight)
    for x, y, c in zip(data.features, data.classes, data.weights, strict=True):
        phi = x - data.origin
        p = (weight @ x + intercept).softmax(0)
        q = (1 - smoothing) * p + smoothing / classes
        mean = sum(q[k] * weight[k] for k in range(classes))
        variance = sum(q[k] * (weight[k] - mean).square().sum() for k in range(classes))
        total = total + c * (-p[y].log() + strength * phi.square().sum() * variance)
    return total


def random_set(classes: int, width: int, size: int, center: bool, seed: int) -> TrainingSet:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(size, width, dtype=torch.float64, generator=random) + 0.7
    labels = torch.randint(classes, (size,), generator=random)
    weights = torch.rand(size, dtype=torch.float64, generator=random)
    return TrainingSet.of(features, labels, weights / weights.sum(), classes, center)


def random_head(data: TrainingSet, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed + 1)
    shape = (data.n_classes, data.features.shape[1])
    return torch.randn(shape, dtype=torch.float64, generator=random), torch.randn(
        shape[0], dtype=torch.float64, generator=random
    )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("classes", "width", "size"), CASES)
def test_value_and_gradient_are_those_of_the_definition(
    classes: int, width: int, size: int, smoothing: float, center: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training_set._ELEMENTS, "cpu", 11 * classes)  # several chunks, the last one smaller
    data = random_set(classes, width, size, center, seed=classes)
    objective = Objective(data, 0.3, smoothing)
    weight, intercept = (part.requires_grad_() for part in random_head(data, seed=classes))
    reference = plain(weight, intercept, data, 0.3, smoothing)
    by_weight, by_intercept = torch.autograd.grad(reference, (weight, intercept))
    value, gradient = objective(objective.parameters_of(weight.detach(), intercept.detach()))
    assert value == pytest.approx(reference.item(), rel=1e-12)
    # The parameters are the scaled weight and the intercept at the origin.
    by_scaled = (by_weight - torch.outer(by_intercept, data.origin)) / objective.scale
    expected = torch.cat([by_scaled.ravel(), by_intercept]).numpy()
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


def test_gradient_agrees_with_finite_differences() -> None:
    objective = Objective(random_set(4, 5, 30, True, seed=3), 0.2, 0.1)
    parameters = np.random.default_rng(0).normal(size=24)
    numeric = approx_fprime(parameters, lambda x: objective(x)[0], 1e-7)
    np.testing.assert_allclose(objective(parameters)[1], numeric, atol=3e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_single_precision_agrees_with_double(classes: int) -> None:
    data = random_set(classes, 20, 200, True, seed=5)
    single = TrainingSet.of(data.features.float(), data.classes, data.weights.float(), classes, True)
    parameters = np.random.default_rng(1).normal(size=21 * classes)
    value, gradient = Objective(data, 0.2, 0.1)(parameters)
    single_value, single_gradient = Objective(single, 0.2, 0.1)(parameters)
    assert single_value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(single_gradient, gradient, atol=1e-5 * np.abs(gradient).max())


def test_one_vector_added_to_all_classes_changes_nothing() -> None:
    objective = Objective(random_set(5, 6, 40, True, seed=7), 0.2, 0.1)
    random = np.random.default_rng(2)
    weight, shift = random.normal(size=(5, 6)), 100 * random.normal(size=6)
    intercepts = random.normal(size=5)
    value, gradient = objective(np.concatenate([weight.ravel(), intercepts]))
    shifted = objective(np.concatenate([(weight + shift).ravel(), intercepts + 3]))
    assert shifted[0] == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(shifted[1], gradient, atol=1e-9)


def test_parameters_and_weights_are_two_views_of_one_head() -> None:
    data = random_set(4, 5, 30, True, seed=9)
    objective = Objective(data, 0.2, 0.1)
    weight, intercept = random_head(data, seed=1)
    weight, intercept = weight - weight.mean(0), intercept - intercept.mean()
    again = objective.weight_and_intercept(objective.parameters_of(weight, intercept))
    torch.testing.assert_close(again[0], weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again[1], intercept, rtol=1e-12, atol=1e-12)
