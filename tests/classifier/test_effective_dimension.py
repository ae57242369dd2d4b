"""The effective dimension against its definition, and where it is known by hand."""

from __future__ import annotations

import pytest
import torch

from hf_fam.classifier.effective_dimension import effective_dimension


def by_definition(features: torch.Tensor, weights: torch.Tensor) -> float:
    covariance = torch.cov(features.T, aweights=weights, correction=0)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (20000, 30), (300, 400)])
def test_it_is_its_definition(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64, generator=random) * torch.arange(1.0, shape[1] + 1) + 5
    weights = torch.rand(shape[0], dtype=torch.float64, generator=random)
    assert effective_dimension(features, weights) == pytest.approx(by_definition(features, weights), rel=1e-10)


def test_known_answers() -> None:
    line = torch.outer(torch.tensor([-1.0, 2.0, 5.0]), torch.ones(7)) + 3
    assert effective_dimension(line) == pytest.approx(1, rel=1e-5)
    corners = torch.cat([torch.eye(6), -torch.eye(6)])  # six directions, one variance
    assert effective_dimension(corners) == pytest.approx(6, rel=1e-5)
    assert effective_dimension(1e3 * corners) == pytest.approx(6, rel=1e-5)
    assert effective_dimension(1e-15 * corners) == pytest.approx(6, rel=1e-5)
