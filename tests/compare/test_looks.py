"""Levels of the looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_fam.compare.statistics import looks
from hf_fam.compare.statistics.spending import DEFAULT_LOOKS, level_of_look, spent


@pytest.mark.parametrize("seeds", [(3,), (3, 5), (3, 5, 8), (3, 5, 8, 12), (2, 3, 4, 5), (10, 11, 60, 61)])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.05 / 12])
@pytest.mark.parametrize("shared", [0.0, 0.25, 4.0])
def test_what_is_spent(seeds: tuple[int, ...], alpha: float, shared: float) -> None:
    """The probability that no look crosses is an integral of the normal density, which scipy computes by itself."""
    bounds = np.array([stats.norm.isf(level_of_look(seeds[: k + 1], alpha, shared) / 2) for k in range(len(seeds))])
    information = 1 / (1 / np.array(seeds) + shared)
    correlation = np.sqrt(np.minimum.outer(information, information) / np.maximum.outer(information, information))
    normal = stats.multivariate_normal(cov=correlation, abseps=1e-7, releps=1e-7, maxpts=2_000_000, seed=0)
    inside = normal.cdf(bounds, lower_limit=-bounds)
    assert 1 - inside == pytest.approx(alpha * spent(seeds[-1]), rel=2e-3)


@pytest.mark.parametrize("shared", [0.001, 0.03, 0.26, 0.9, 100.0])
def test_what_the_looks_share_is_rounded_to_the_safe_side(shared: float) -> None:
    level = level_of_look((3, 5, 8, 12), 0.05, shared)
    assert level_of_look((3, 5, 8, 12), 0.05) <= level
    power = [2.0**k for k in range(-6, 3) if 2.0**k <= shared]
    assert level == level_of_look((3, 5, 8, 12), 0.05, power[-1] if power else 0.0)


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


def test_a_budget_that_ends_between_two_looks_costs_next_to_nothing() -> None:
    """The look at its end is forgotten when a larger budget carries on with the usual looks."""
    usual, ends = (3, 5, 8, 12), (4, 6, 10)
    sums = np.random.default_rng(1).standard_normal((100_000, 12)).cumsum(1)
    crossed = np.zeros(len(sums), dtype=bool)
    for n in sorted({*usual, *ends}):
        level = level_of_look((*(look for look in usual if look < n), n), 0.05)
        crossed |= np.abs(sums[:, n - 1]) / n**0.5 > stats.norm.isf(level / 2)
    assert crossed.mean() < 0.05
