"""How many more seeds or test examples would decide an undecided comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .distributions import normal_probability
from .estimate import Estimate
from .spending import DEFAULT_LOOKS, level_of_look
from .verdict import PROBABILITY

MOST_SEEDS = 200
MOST_ITEMS = 100  # times the number of items
FEWEST_ITEMS = 30
PRIOR_DEVIATION = 2.0  # of the true gain, in margins


class Design(Protocol):
    """Paired differences in brief, which can be imagined with more seeds or items."""

    @property
    def seeds(self) -> int:
        """How many."""

    @property
    def items(self) -> int | None:
        """How many, or None where they are not known."""

    def estimate(self) -> Estimate:
        """Return the mean difference and its error."""

    def with_size(self, seeds: int, items: int | None) -> Design:
        """Return what is expected of more seeds or items."""


def round_numbers(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 5, 6, 8, 10, 12, 15 and so on, in steps of about a quarter.

    Example:
        >>> list(round_numbers(150))[-6:]
        [50, 60, 80, 100, 120, 150]
    """
    small, steps, scale = (1, 2, 3, 4, 5, 6, 8), (10, 12, 15, 20, 25, 30, 40, 50, 60, 80), 1
    yield from (n for n in small if n <= most)
    while 10 * scale <= most:
        yield from (n * scale for n in steps if n * scale <= most)
        scale *= 10


def probability_of_decision(now: Estimate, later: Estimate, half_width: float, margin: float) -> float:
    """Return the probability that more data decide.

    It is the predictive power (Spiegelhalter, Freedman and Blackburn 1986, Controlled Clinical Trials 7). The
    probability is over the true gain, as far as the data tell, and over the data to come. Before any data, gains are
    taken to be normal around zero with a standard deviation of two margins. Without that, a large chance gain of noisy
    scores would often be followed up in vain.

    Args:
        now: the estimate of the gain.
        later: what is expected with more data.
        half_width: of the interval with more data.
        margin: gains up to it make no practical difference; with zero, no gain is less likely than another one.
    """
    center, step = now.difference, 0.0
    if later.variance < now.variance:
        old = later.variance / now.variance  # the weight of the data so far in the later mean
        trust = (PRIOR_DEVIATION * margin) ** 2 / ((PRIOR_DEVIATION * margin) ** 2 + now.variance) if margin else 1.0
        of_new_mean = later.variance / (1 - old)
        center *= old + (1 - old) * trust
        step = (1 - old) * math.sqrt(trust * now.variance + of_new_mean)
    needed = max(half_width, later.least_difference(margin, PROBABILITY))
    within = margin - half_width

    def below(bound: float) -> float:
        return float(normal_probability((bound - center) / step)) if step else float(bound >= center)

    different = 1 - below(needed) + below(-needed)
    return different + (below(within) - below(-within) if within >= 0 else 0.0)


def advise(design: Design, margin: float, looks_so_far: Sequence[int], share: float) -> tuple[int | None, int | None]:
    """Return how many more seeds, items or both decide with a probability of at least one half.

    Args:
        design: the gains so far.
        margin: gains up to it make no practical difference.
        looks_so_far: number of seeds at each look so far.
        share: the part of alpha that this method has.

    Returns:
        ``(seeds, None)``, or ``(None, items)`` if up to 200 more seeds do not decide. Both, if neither decides alone.
        ``(None, None)`` if nothing decides: the scores are too noisy, or the difference is too close to the margin.
    """
    seeds, items = design.seeds, design.items
    now = design.estimate()
    if math.isinf(now.variance):
        return (max(DEFAULT_LOOKS[0] - seeds, 0) or None, FEWEST_ITEMS - 1 if items == 1 else None)

    def decides(more_seeds: int, more_items: int) -> bool:
        later = design.with_size(seeds + more_seeds, items + more_items if items else None).estimate()
        level = level_of_look(looks_until(looks_so_far, seeds + more_seeds), share, later.shared)
        return probability_of_decision(now, later, later.half_width(level), margin) >= 0.5

    more = first(list(round_numbers(MOST_SEEDS)), lambda n: decides(n, 0))
    if more is not None or not items:
        return more, None
    all_items = MOST_ITEMS * items
    few_seeds = first([0, *round_numbers(MOST_SEEDS)], lambda n: decides(n, all_items))
    if few_seeds is None:
        return None, None
    return few_seeds or None, first([*round_numbers(all_items - 1), all_items], lambda n: decides(few_seeds, n))


def first(candidates: Sequence[int], decides: Callable[[int], bool]) -> int | None:
    """Return the first candidate that decides, or None, looking at every fourth one first.

    Example:
        >>> first([1, 2, 3, 4, 5, 6, 8, 10], lambda n: n >= 5)
        5
    """
    stride = 4
    for end in range(stride - 1, len(candidates) + stride - 1, stride):
        end = min(end, len(candidates) - 1)
        if decides(candidates[end]):
            return next(n for n in candidates[max(end - stride + 1, 0) : end + 1] if n == candidates[end] or decides(n))
    return None


def looks_until(looks_so_far: Sequence[int], seeds: int) -> tuple[int, ...]:
    """Return the looks so far, the usual ones that follow, and one at a number of seeds."""
    if seeds == looks_so_far[-1]:
        return tuple(looks_so_far)
    return (*looks_so_far, *(n for n in DEFAULT_LOOKS if looks_so_far[-1] < n < seeds), seeds)
