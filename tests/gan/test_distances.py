"""Earth mover's and Frechet distance against brute force, closed forms and other software."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hf_fam.gan import earth_movers_distance, frechet_distance


def test_earth_movers_distance_is_the_best_of_all_permutations() -> None:
    x, y = torch.randn(6, 3).double(), torch.randn(6, 3).double() + 1
    costs = [(x - y[list(order)]).norm(dim=1).mean().item() for order in itertools.permutations(range(6))]
    assert earth_movers_distance(x, y) == pytest.approx(min(costs), rel=1e-12)


def test_earth_movers_distance_on_a_line_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = torch.randn(200, 1).double(), 2 * torch.randn(200, 1).double() + 0.5
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert earth_movers_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_earth_movers_distance_of_a_shift_is_its_length() -> None:
    x = torch.randn(50, 2, 4)
    assert earth_movers_distance(x, x[torch.randperm(50)] + 0.25) == pytest.approx(0.25 * 8**0.5, rel=1e-5)


@pytest.mark.parametrize("samples", [300, 4], ids=["many", "fewer_than_features"])
def test_frechet_distance_against_scipys_matrix_root(samples: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x = torch.randn(samples, 7).double() @ torch.randn(7, 7).double()
    y = torch.randn(samples + 3, 7).double() @ torch.randn(7, 7).double() + torch.randn(7).double()
    means, covariances = zip(*[(a.mean(0), np.cov(a.T)) for a in (x.numpy(), y.numpy())], strict=True)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6 if samples > 7 else 1e-4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6 * np.trace(covariances[0]))


def test_earth_movers_distance_of_single_numbers() -> None:
    assert earth_movers_distance(torch.tensor([0.0, 3.0]), torch.tensor([2.0, 1.0])) == 1.0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), "give equally many of each"),
        (torch.zeros(()), torch.zeros(()), "at least one"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "at least one"),
        (torch.full((2, 2), float("nan")), torch.zeros(2, 2), "NaN or infinity"),
    ],
)
def test_refusals_of_the_earth_movers_distance(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        earth_movers_distance(x, y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), "one row a sample"),
        (torch.zeros(3, 2), torch.zeros(3, 4), "one row a sample"),
        (torch.zeros(1, 2), torch.zeros(3, 2), "at least two samples"),
        (torch.full((2, 2), float("inf")), torch.zeros(2, 2), "NaN or infinity"),
    ],
)
def test_refusals_of_the_frechet_distance(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
