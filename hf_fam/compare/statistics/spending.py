"""When the scores are looked at, and the level that each look may use (alpha spending, Lan and DeMets 1983)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...inputs.packages import optional_packages
from .distributions import normal_probability, special, two_sided_level, two_sided_z

DEFAULT_LOOKS = (3, 5, 8, 12, 18, 27, 40, 60, 90)

# The number of seeds at which half of alpha is spent.
HALF_SPENT_SEEDS = 6
LARGEST_Z = 40.0
SMALLEST_POWER, LARGEST_POWER = -6, 2


def looks(most_seeds: int) -> tuple[int, ...]:
    """Return the numbers of seeds after which to look: 3, 5, 8, 12 ...

    Args:
        most_seeds: how many seeds the budget allows, at least 2. It is the last look.

    Raises:
        ValueError: there are fewer than 2 seeds.

    Example:
        >>> looks(12), looks(10)
        ((3, 5, 8, 12), (3, 5, 8, 10))
    """
    if most_seeds < 2:
        raise ValueError(f"most_seeds={most_seeds!r}: a comparison needs at least 2 seeds.")
    return (*(n for n in DEFAULT_LOOKS if n < most_seeds), most_seeds)


def spent(seeds: float) -> float:
    """Return the part of alpha that is spent when a number of seeds has been seen.

    It depends on the number of seeds alone, and reaches 1 only in the limit. So a larger budget may carry on a
    comparison at any time, and the looks that came before still count as they did.

    Example:
        >>> [round(spent(n), 2) for n in DEFAULT_LOOKS]
        [0.2, 0.41, 0.64, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0]
    """
    return seeds**2 / (seeds**2 + HALF_SPENT_SEEDS**2)


def level_of_look(seeds: Sequence[int], alpha: float, shared: float = 0.0) -> float:
    """Return the two-sided level of the last of several looks.

    At these levels a normal statistic crosses first at look k with probability
    ``alpha * (spent(seeds[k]) - spent(seeds[k - 1]))``, so at any look with at most ``alpha``. The recursion
    is that of Armitage, McPherson and Rowe (1969, J. R. Stat. Soc. A 132). With n seeds the information is
    ``1 / (1 / n + shared)``. The more the looks share, the more alike are their answers, and the less a look costs.

    Args:
        seeds: number of seeds at each look so far, ascending.
        alpha: probability of an error over all looks.
        shared: the variance that does not shrink with seeds, such as that of the test items, by the variance that one
            seed adds. It is rounded down to a power of two, which makes the level smaller.

    Example:
        >>> [round(level_of_look((3, 5, 8, 12)[:k], 0.05), 4) for k in (1, 2, 3, 4)]
        [0.01, 0.0142, 0.0176, 0.0151]
    """
    power = max(math.floor(math.log2(shared)), SMALLEST_POWER - 1) if shared > 0 else SMALLEST_POWER - 1
    rounded = 2.0 ** min(power, LARGEST_POWER) if power >= SMALLEST_POWER else 0.0
    return _level(tuple(seeds), alpha, rounded)


@lru_cache(maxsize=8192)
def _level(seeds: tuple[int, ...], alpha: float, shared: float) -> float:
    now, before = seeds[-1], seeds[:-1]
    gain = alpha * (spent(now) - (spent(before[-1]) if before else 0.0))
    if not before:
        return gain
    with optional_packages("comparing methods", "compare"):
        from scipy.optimize import brentq

    sums, density = _continuing(before, alpha, shared)
    information, earlier = (1 / (1 / n + shared) for n in (now, before[-1]))
    step = (information - earlier) ** 0.5

    def excess(z: float) -> float:
        bound = z * information**0.5
        beyond = normal_probability((sums - bound) / step) + normal_probability((-sums - bound) / step)
        return float(density @ beyond) - gain

    return two_sided_level(brentq(excess, 0.0, LARGEST_Z, xtol=1e-9))


@lru_cache(maxsize=2048)
def _continuing(seeds: tuple[int, ...], alpha: float, shared: float) -> tuple[Any, Any]:
    """Return nodes and weighted density of the score statistic, information times mean, where no look has crossed."""
    now, before = seeds[-1], seeds[:-1]
    information, earlier = (1 / (1 / n + shared) if n else 0.0 for n in (now, before[-1] if before else 0))
    bound = two_sided_z(_level(seeds, alpha, shared)) * information**0.5
    step = (information - earlier) ** 0.5
    nodes, weights = _gauss(min(max(96, int(6 * bound / step)), 400))
    sums = bound * nodes
    if before:
        start, density = _continuing(before, alpha, shared)
    else:
        start, density = np.zeros(1), np.ones(1)
    kernel = np.exp(-0.5 * ((sums[:, None] - start) / step) ** 2) / (step * (2 * np.pi) ** 0.5)
    return sums, kernel @ density * bound * weights


@lru_cache(maxsize=64)
def _gauss(count: int) -> tuple[Any, Any]:
    nodes, weights = special().roots_legendre(count)
    return nodes, weights
