"""Verdicts, and scores that are unusual or wrong."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hf_fam.compare.statistics import Comparison, Scores, Verdict, compare_methods, looks

MARGIN = 0.005


def compare(plain: Any, fam: Any, **settings: Any) -> Comparison:
    settings = {"baseline": "plain", "margin": MARGIN, **settings}
    return compare_methods({"plain": Scores(plain), "fam": Scores(fam)}, **settings)["fam"]


def shifted(gain: float, noise: float, seeds: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose differences have exactly this mean and standard deviation."""
    rng = np.random.default_rng(seeds)
    plain, pattern = rng.normal(0.8, 0.02, seeds), rng.standard_normal(seeds)
    pattern -= pattern.mean()
    return plain, plain + gain + noise * pattern / pattern.std(ddof=1)


@pytest.mark.parametrize(
    ("gain", "noise", "verdict"),
    [
        (0.02, 0.004, Verdict.BETTER),
        (-0.02, 0.004, Verdict.WORSE),
        (0.0, 0.003, Verdict.SAME),
        (0.002, 0.001, Verdict.SAME),  # above zero, and of no use
        (0.02, 0.05, Verdict.UNDECIDED),  # zero is in the interval
        (0.006, 0.004, Verdict.UNDECIDED),  # above zero, and perhaps below the margin
        (0.0, 0.02, Verdict.UNDECIDED),
    ],
)
def test_the_four_verdicts(gain: float, noise: float, verdict: Verdict) -> None:
    result = compare(*shifted(gain, noise))
    assert result.verdict is verdict
    assert result.difference == pytest.approx(gain, abs=1e-12)
    assert (result.low + result.high) / 2 == pytest.approx(gain, abs=1e-12)
    assert (result.more_seeds, result.more_items) == (None, None) or verdict is Verdict.UNDECIDED
    # The rule, once more from what is returned.
    inside = result.low >= -MARGIN and result.high <= MARGIN
    better = result.low > 0 and result.probability_of_gain >= 0.95
    assert (result.verdict is Verdict.SAME, result.verdict is Verdict.BETTER) == (inside, better)


@pytest.mark.parametrize("shape", [(8,), (8, 30)])
def test_losses_and_exchanged_methods_mirror_each_other(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    plain, fam = rng.normal(0.0, 0.01, shape), rng.normal(0.01, 0.01, shape)
    result, loss = compare(plain, fam), compare(-plain, -fam, higher_is_better=False)
    assert (loss.low, loss.high) == pytest.approx((-result.high, -result.low))
    assert dataclasses.replace(loss, difference=0, low=0, high=0) == dataclasses.replace(
        result, difference=0, low=0, high=0
    )
    exchanged = compare(fam, plain)
    assert (exchanged.low, exchanged.high) == pytest.approx((-result.high, -result.low))
    mirror = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert exchanged.verdict is mirror.get(result.verdict, result.verdict)
    assert exchanged.more_seeds == result.more_seeds


@pytest.mark.parametrize("gain", [-0.01, 0.0, 0.03])
def test_the_intervals_of_all_looks_cover_the_true_gain(gain: float) -> None:
    """All of them at once, in 95 % of the comparisons; whoever stops at a look that he likes is covered."""
    schedule, rng, missed = looks(12), np.random.default_rng(2), 0
    for _ in range(400):
        plain = rng.normal(0.8, 0.05, (12, 40)) + 0.02 * rng.standard_normal((12, 1))
        fam = plain + gain + 0.1 * (0.05 * rng.standard_normal((12, 1)) + rng.standard_normal((1, 40)))
        fam += 0.1 * rng.standard_normal((12, 40))
        results = [compare(plain[:n], fam[:n], look=k, looks=schedule) for k, n in enumerate(schedule)]
        missed += not all(result.low <= gain <= result.high for result in results)
    assert 0 < missed <= 31


@pytest.mark.parametrize("power", [0.5, 0.8, 0.9])
def test_a_gain_of_two_margins_is_found_with_the_power_that_is_stated(power: float) -> None:
    """With a standard error of the difference of margin / (t_.95 + t_power), about, at the last look.

    Exactly: the probability is that of a noncentral t, and what earlier looks find comes on top.
    """
    schedule, many = looks(12), 1500
    rng = np.random.default_rng(1)
    df = schedule[-1] - 1
    error = MARGIN / (stats.t.ppf(0.95, df) + stats.t.ppf(power, df))
    # The gain above the margin has to be larger than t_.95 standard errors.
    stated = float(stats.nct.sf(stats.t.ppf(0.95, df), df, MARGIN / error))
    assert stated == pytest.approx(power, abs=0.02)
    found = 0
    for _ in range(many):
        plain = rng.normal(0.8, 0.02, schedule[-1])
        fam = plain + 2 * MARGIN + error * math.sqrt(schedule[-1]) * rng.standard_normal(schedule[-1])
        found += any(
            compare(plain[:n], fam[:n], look=k, looks=schedule).verdict is Verdict.BETTER
            for k, n in enumerate(schedule)
        )
    scatter = 2.5 * math.sqrt(stated * (1 - stated) / many)
    assert stated - scatter < found / many < stated + 0.12


def test_the_first_look_is_cautious_and_a_large_gain_is_seen() -> None:
    """Three seeds have two degrees of freedom: a standard error of a seventh is not enough, and of a thirtieth is."""
    assert compare(*shifted(0.02, 0.02 / 7 * math.sqrt(3), 3)).verdict is Verdict.UNDECIDED
    assert compare(*shifted(0.02, 0.02 / 30 * math.sqrt(3), 3)).verdict is Verdict.BETTER


def test_more_looks_and_more_methods_widen_the_interval() -> None:
    plain, fam = shifted(0.0, 0.01, 8)
    once = compare(plain, fam, looks=(8,))
    last = compare(plain, fam, look=2, looks=(3, 5, 8))
    assert last.high > once.high
    others = {f"other {i}": Scores(fam) for i in range(3)}
    several = compare_methods(
        {"plain": Scores(plain), "fam": Scores(fam), **others}, baseline="plain", margin=MARGIN, looks=(8,)
    )
    assert list(several) == ["fam", "other 0", "other 1", "other 2"]
    assert several["fam"].high > once.high


def test_later_looks_that_are_planned_change_nothing() -> None:
    """So that a larger budget can carry on what a smaller one began."""
    plain, fam = shifted(0.004, 0.01, 5)
    assert compare(plain, fam, look=1, looks=(3, 5)) == compare(plain, fam, look=1, looks=looks(60))


def test_the_number_of_seeds_that_there_are_counts() -> None:
    """A budget that ends between two looks, or a first look of more seeds than usual."""
    plain, fam = shifted(0.004, 0.01, 7)
    assert compare(plain, fam, look=2) == compare(plain, fam, look=2, looks=(3, 5, 7))
    # No seed since the look before: it is that look.
    assert compare(plain[:5], fam[:5], look=2) == compare(plain[:5], fam[:5], look=1)
    assert compare(plain[:4], fam[:4], look=2) == compare(plain[:4], fam[:4], look=1, looks=(3, 4))


def test_one_seed_decides_nothing() -> None:
    for plain, fam in [([0.8], [0.9]), ([[0.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]])]:
        result = compare(plain, fam)
        assert result.verdict is Verdict.UNDECIDED
        assert (result.low, result.high, result.degrees_of_freedom) == (-math.inf, math.inf, 0.0)
        assert (result.probability_of_gain, result.more_seeds) == (0.5, 2)


def test_one_item_decides_nothing() -> None:
    result = compare([[0.0], [1.0], [0.0]], [[1.0], [1.0], [1.0]])
    assert result.verdict is Verdict.UNDECIDED and math.isinf(result.high)
    assert (result.more_seeds, result.more_items) == (None, 29)


def test_two_items_and_two_seeds() -> None:
    result = compare([[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]])
    assert result.verdict is Verdict.UNDECIDED and math.isfinite(result.high)


def test_a_deterministic_method_is_judged_by_the_items() -> None:
    """All seeds of both methods give the same predictions: seeds add nothing, and no error comes from them."""
    rng = np.random.default_rng(0)
    plain = np.tile((rng.random(2000) < 0.8).astype(float), (3, 1))
    fam = np.tile(np.maximum(plain[0], rng.random(2000) < 0.4), (3, 1))
    result = compare(plain, fam)
    gains = fam[0] - plain[0]
    assert result.verdict is Verdict.BETTER
    width = stats.t.isf(0.005, 1999) * gains.std(ddof=1) / math.sqrt(2000)
    assert (result.low, result.high) == pytest.approx((gains.mean() - width, gains.mean() + width))
    assert result.degrees_of_freedom == pytest.approx(1999)


def test_identical_predictions_are_the_same_when_there_are_enough() -> None:
    """No disagreement among n items leaves up to about log(1 / a) / n of disagreement among others."""
    rng = np.random.default_rng(0)
    for items, verdict in [(200, Verdict.UNDECIDED), (3000, Verdict.SAME)]:
        values = (rng.random((3, items)) < 0.8).astype(float)
        result = compare(values, values.copy())
        assert result.difference == 0.0 and result.verdict is verdict
        assert result.high == pytest.approx(1 - 0.005 ** (1 / items))
        assert result.probability_of_gain < 0.5
        assert (result.more_items is not None) == (verdict is Verdict.UNDECIDED)


def test_identical_scores_that_never_vary_are_the_same() -> None:
    result = compare([0.8, 0.8, 0.8], [0.8, 0.8, 0.8])
    assert result.verdict is Verdict.SAME
    assert (result.difference, result.low, result.high, result.probability_of_gain) == (0.0, 0.0, 0.0, 0.0)


def test_equal_differences_of_three_seeds_are_not_certain() -> None:
    """With 20 test examples, three seeds often differ by one example each; rounding must not make that certain."""
    plain = np.array([0.80, 0.75, 0.85])
    result = compare(plain, plain + 0.05)
    assert result.verdict is Verdict.UNDECIDED and result.low < 0 < result.high
    repeated = compare(plain, plain + 0.05, test_to_train_ratio=0.25)
    assert repeated.low < result.low


def test_rounding_is_no_variance() -> None:
    plain = np.array([0.1, 0.2, 0.3]) + 0.5
    fam = np.array([0.1 + 0.05, 0.2 + 0.05, 0.3 + 0.05]) + 0.5
    assert len(set(fam - plain)) > 1
    assert compare(plain, fam).verdict is Verdict.UNDECIDED


def test_nothing_but_the_baseline() -> None:
    assert compare_methods({"plain": Scores([0.1, 0.2])}, baseline="plain", margin=0.0) == {}


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_do_not_matter(scale: float) -> None:
    plain, fam = shifted(0.004, 0.01, 5)
    result, scaled = compare(plain, fam, look=1), compare(scale * plain, scale * fam, look=1, margin=scale * MARGIN)
    assert (scaled.low / scale, scaled.high / scale) == pytest.approx((result.low, result.high))
    assert (scaled.verdict, scaled.more_seeds) == (result.verdict, result.more_seeds)


THREE = [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("plain", "fam", "settings", "sentence"),
    [
        (
            THREE,
            [0.1, math.nan, 0.3],
            {},
            "The scores of 'fam' have nan at seed 1 .* repeat this run, or leave its seed",
        ),
        ([THREE], [[0.1, 0.2, -math.inf]], {}, "The scores of 'fam' have -inf at seed 0, item 2"),
        (THREE, [0.1, 0.2], {}, r"'fam' have shape \(2,\) and those of 'plain' \(3,\); compare the same seeds"),
        ([], [], {}, r"'plain' have shape \(0,\); give one for each seed"),
        (0.5, 0.6, {}, r"'plain' have shape \(\); give one for each seed"),
        ([THREE] * 3, [THREE] * 3, {"test_to_train_ratio": 0.25}, "repeated splits have one score for each repeat"),
        (THREE, THREE, {"baseline": "sam"}, "baseline='sam' has no scores; there are scores of 'plain', 'fam'"),
        (THREE, THREE, {"margin": -0.1}, "margin=-0.1: give a difference"),
        (THREE, THREE, {"margin": math.nan}, "margin=nan: give a difference"),
        (THREE, THREE, {"confidence": 95}, "confidence=95: give a probability between 0 and 1, such as 0.95"),
        (THREE, THREE, {"look": 9}, "look=9: there are 9 looks, counted from 0"),
        (THREE, THREE, {"looks": (5, 3)}, r"looks=\(5, 3\): give numbers of seeds"),
        (THREE, THREE, {"test_to_train_ratio": 0.0}, "test_to_train_ratio=0.0: give the number of test examples"),
        (THREE, THREE, {"examples": 1}, "examples=1: give the number of labeled examples"),
    ],
)
def test_one_sentence_says_what_is_wrong(plain: Any, fam: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare(plain, fam, **settings)


def test_scipy_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"needs scipy: pip install 'hf-fam\[compare\]'"):
        compare(THREE, [0.2, 0.1, 0.4])
