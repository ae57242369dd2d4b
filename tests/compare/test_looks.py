"""Levels of the looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_fam.compare.statistics import DEFAULT_LOOKS, looks
from hf_fam.compare.statistics.spending import level_of_look, spent


@pytest.mark.parametrize("seeds", [(3,), (3, 5), (3, 5, 8), (3, 5, 8, 12), (2, 3, 4, 5), (10, 11, 60, 61)])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.05 / 12])
def test_what_is_spent(seeds: tuple[int, ...], alpha: float) -> None:
    """The probability that no look crosses is an orthant-like integral, which scipy computes by itself."""
    bounds = np.array([stats.norm.isf(level_of_look(seeds[: k + 1], alpha) / 2) for k in range(len(seeds))])
    correlation = np.sqrt(np.minimum.outer(seeds, seeds) / np.maximum.outer(seeds, seeds))
    normal = stats.multivariate_normal(cov=correlation, abseps=1e-7, releps=1e-7, maxpts=2_000_000, seed=0)
    inside = normal.cdf(bounds, lower_limit=-bounds)
    assert 1 - inside == pytest.approx(alpha * spent(seeds[-1]), rel=2e-3)


def test_a_hundred_looks() -> None:
    """A look after every seed still costs alpha in all."""
    seeds = tuple(range(2, 102))
    bounds = [stats.norm.isf(level_of_look(seeds[: k + 1], 0.05) / 2) for k in range(len(seeds))]
    steps = np.random.default_rng(0).standard_normal((40_000, seeds[-1]), dtype=np.float32)
    z = np.abs(steps.cumsum(1)[:, 1:]) / np.sqrt(seeds)
    assert np.mean((z > bounds).any(1)) == pytest.approx(0.05, abs=0.004)


def test_alpha_is_never_used_up() -> None:
    """A larger budget may always carry on."""
    part = [spent(n) for n in (2, *DEFAULT_LOOKS, 10_000)]
    assert part == sorted(part) and part[-1] < 1
    assert level_of_look((*DEFAULT_LOOKS, 1000), 0.05) > 0


def test_looks_end_with_the_budget() -> None:
    assert looks(2) == (2,)
    assert looks(3) == (3,)
    assert looks(20) == (3, 5, 8, 12, 18, 20)
    with pytest.raises(ValueError, match="most_seeds=1: a comparison needs at least 2 seeds"):
        looks(1)
