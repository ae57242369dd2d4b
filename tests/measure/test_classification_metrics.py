"""Metrics against their definitions, item by item, and against torch."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest
import torch

from hf_fam.measure.classification_metrics import accuracy, expected_calibration_error, negative_log_likelihood

METRICS = [accuracy, negative_log_likelihood, expected_calibration_error]


@pytest.fixture
def random_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(secrets.randbits(32))
    return 3 * rng.normal(size=(200, 7)), rng.integers(0, 7, 200)


def test_accuracy_and_nll_equal_torch(random_case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = random_case
    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    assert accuracy(logits, labels) == pytest.approx((z.argmax(-1) == y).double().mean().item())
    assert negative_log_likelihood(logits, labels) == pytest.approx(torch.nn.functional.cross_entropy(z, y).item())


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_by_definition(random_case: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    logits, labels = random_case
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for z, y in zip(logits, labels, strict=True):
        p = [math.exp(v) / sum(math.exp(w) for w in z) for v in z]
        members[next(k for k in range(bins) if max(p) <= (k + 1) / bins)].append((max(p), p.index(max(p)) == y))
    expected = 0.0
    for of_bin in filter(None, members):
        confidences, hits = zip(*of_bin, strict=True)
        expected += len(of_bin) / len(labels) * abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
    assert expected_calibration_error(logits, labels, bins) == pytest.approx(expected)


def test_known_values() -> None:
    sure = [[100.0, 0.0], [0.0, 100.0]]
    assert expected_calibration_error(sure, [0, 1]) == 0
    assert expected_calibration_error(sure, [1, 0]) == 1
    assert negative_log_likelihood(sure, [1, 0]) == 100
    assert accuracy(sure, [1, 1]) == 0.5


def test_huge_logits_do_not_overflow() -> None:
    assert math.isfinite(negative_log_likelihood([[1e6, -1e6]], [1]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("logits", "labels"),
    [([1.0, 2.0], [0]), ([[1.0, 2.0]], [0, 1]), (np.zeros((0, 2)), []), ([[1.0, 2.0]], [2]), ([[1.0, 2.0]], [0.5])],
)
def test_what_does_not_fit_is_refused(metric, logits, labels) -> None:
    with pytest.raises(ValueError, match="labels"):
        metric(logits, labels)


def test_bins_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="bins=0"):
        expected_calibration_error([[0.0, 1.0]], [1], bins=0)
