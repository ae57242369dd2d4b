"""How many more seeds or test items: when the advice is followed, half of the comparisons are decided."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from hf_fam.compare.statistics import Comparison, Scores, Verdict, compare_methods, looks
from hf_fam.compare.statistics.advice import looks_until, round_numbers

MARGIN = 0.005


def compare(gains: np.ndarray, made: tuple[int, ...], **settings: float | int) -> Comparison:
    """Compare scores with these differences, at the last of the looks."""
    scores = {"plain": Scores(np.zeros_like(gains)), "fam": Scores(gains)}
    last = len(made) - 1
    return compare_methods(scores, baseline="plain", margin=MARGIN, look=last, looks=made, **settings)["fam"]  # type: ignore[arg-type]


def follow_the_advice(start: int, noise: float, gain: Callable[[], float], rng: np.random.Generator) -> tuple[int, int]:
    """How often more seeds were advised in 300 comparisons, and how often they then decided."""
    advised = decided = 0
    for _ in range(300):
        true_gain = gain()
        gains = true_gain + noise * rng.standard_normal(start)
        before = compare(gains, looks(start))
        if before.more_seeds is not None:
            assert before.verdict is Verdict.UNDECIDED and before.more_items is None
            gains = np.append(gains, true_gain + noise * rng.standard_normal(before.more_seeds))
            after = compare(gains, looks_until(looks(start), len(gains)))
            advised, decided = advised + 1, decided + (after.verdict is not Verdict.UNDECIDED)
    return advised, decided


@pytest.mark.parametrize("margins", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("start", [3, 5, 8])
def test_so_many_more_seeds_decide(start: int, margins: float) -> None:
    advised, decided = follow_the_advice(start, MARGIN, lambda: margins * MARGIN, np.random.default_rng(start))
    assert advised > 15 and decided >= 0.5 * advised


@pytest.mark.parametrize("start", [3, 5, 12])
def test_the_advice_is_as_likely_to_help_as_it_says(start: int) -> None:
    """In about one half, over gains of about two margins; half or twice the advice would help in 35 or 63 %."""
    rng = np.random.default_rng(start)
    advised, decided = follow_the_advice(start, 2 * MARGIN, lambda: 2 * MARGIN * rng.standard_normal(), rng)
    assert advised > 50 and 0.42 <= decided / advised <= 0.58


def crossed(gain: float, seeds: int, items: int, rng: np.random.Generator) -> np.ndarray:
    """Differences that vary with the item, and with both, by 0.14 each, and not with the seed alone."""
    return gain + 0.14 * (rng.standard_normal((1, items)) + rng.standard_normal((seeds, items)))


@pytest.mark.parametrize("margins", [0.0, 2.0, 4.0])
def test_where_seeds_cannot_help_so_many_test_items_do(margins: float) -> None:
    rng = np.random.default_rng(1)
    seeds, items, advised, decided = 12, 300, 0, 0
    for _ in range(100):
        gains = crossed(margins * MARGIN, seeds, items, rng)
        before = compare(gains, looks(seeds))
        if before.more_items is not None and before.more_seeds is None:
            gains = np.hstack([gains, crossed(margins * MARGIN, seeds, before.more_items, rng)])
            advised += 1
            decided += compare(gains, looks(seeds)).verdict is not Verdict.UNDECIDED
    assert advised > 40 and decided >= 0.5 * advised


@pytest.mark.parametrize("margins", [0.0, 2.0])
def test_repeated_splits_need_more_examples(margins: float) -> None:
    """Repeats share their data set: a part `n_test / n` of the variance, which only more examples shrink."""
    rng = np.random.default_rng(2)
    part, examples, repeats = 0.2, 400, 12
    deviation = 3 * MARGIN

    def draw(examples_now: int) -> np.ndarray:
        noise = part**0.5 * rng.standard_normal() + (1 - part) ** 0.5 * rng.standard_normal(repeats)
        return margins * MARGIN + deviation * (examples / examples_now) ** 0.5 * noise

    advised = decided = 0
    for _ in range(200):
        before = compare(draw(examples), looks(repeats), test_to_train_ratio=0.25, examples=examples)
        if before.more_items is not None and before.more_seeds is None:
            after = compare(draw(examples + before.more_items), looks(repeats), test_to_train_ratio=0.25)
            advised, decided = advised + 1, decided + (after.verdict is not Verdict.UNDECIDED)
    assert advised > 40 and decided >= 0.5 * advised


def test_both_where_neither_is_enough() -> None:
    """Three seeds that differ much, and few items: all the items in the world leave the seeds, and the reverse."""
    rng = np.random.default_rng(3)
    of_seeds, of_items = np.array([[-1.0], [0.0], [1.0]]), rng.standard_normal((1, 100))
    result = compare(0.01 + 0.004 * of_seeds + 0.1 * (of_items - of_items.mean()), (3,))
    assert result.more_seeds and result.more_items


def test_no_advice_where_none_would_help() -> None:
    """The gain is the margin, known almost exactly: no number of seeds says on which side of it."""
    pattern = np.tile([1.0, -1.0], 20)
    result = compare(MARGIN + 1e-6 * MARGIN * pattern, (40,))
    assert (result.verdict, result.more_seeds, result.more_items) == (Verdict.UNDECIDED, None, None)


def test_numbers_are_round() -> None:
    numbers = list(round_numbers(100_000))
    assert numbers == sorted(set(numbers)) and numbers[0] == 1 and numbers[-1] == 100_000
    assert all(later / earlier <= 1.5 for earlier, later in itertools.pairwise(numbers[2:]))
    assert list(round_numbers(7)) == [1, 2, 3, 4, 5, 6]
