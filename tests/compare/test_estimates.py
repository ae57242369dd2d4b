"""Variance components, degrees of freedom, coverage, and the correction for repeated splits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from hf_fam.compare.statistics import Scores, compare_methods
from hf_fam.compare.statistics.crossed import CrossedDifferences
from hf_fam.compare.statistics.estimate import ConstantEstimate, TEstimate
from hf_fam.compare.statistics.one_score import SeedDifferences

COMPONENTS = [(0.5, 2.0, 1.0), (1.0, 0.1, 0.3), (0.05, 1.0, 3.0)]


def crossed(rng: np.random.Generator, variances: tuple[float, float, float], seeds: int, items: int) -> np.ndarray:
    of_seeds, of_items, of_rest = np.sqrt(variances)
    return (
        of_seeds * rng.standard_normal((seeds, 1))
        + of_items * rng.standard_normal((1, items))
        + of_rest * rng.standard_normal((seeds, items))
    )


def restricted_deviance(variances: np.ndarray, values: np.ndarray) -> float:
    """Minus twice the restricted log likelihood of the mixed model, from its dense covariance matrix."""
    seeds, items = values.shape
    one = np.ones
    covariance = (
        variances[0] * np.kron(np.eye(seeds), one((items, items)))
        + variances[1] * np.kron(one((seeds, seeds)), np.eye(items))
        + variances[2] * np.eye(seeds * items)
    )
    inverse = np.linalg.inv(covariance)
    y, x = values.ravel(), one(seeds * items)
    information = x @ inverse @ x
    rest = y - (x @ inverse @ y) / information
    return float(np.linalg.slogdet(covariance)[1] + math.log(information) + rest @ inverse @ rest)


def second_derivatives(function, at: np.ndarray) -> np.ndarray:
    step = 1e-3 * at
    shifts = np.diag(step)
    return np.array(
        [
            [
                sum(i * j * function(at + i * shifts[a] + j * shifts[b]) for i in (-1, 1) for j in (-1, 1))
                / (4 * step[a] * step[b])
                for b in range(3)
            ]
            for a in range(3)
        ]
    )


@pytest.mark.parametrize("variances", COMPONENTS)
def test_components_and_degrees_of_freedom_are_those_of_a_mixed_model(variances: tuple[float, float, float]) -> None:
    """Restricted maximum likelihood, and Satterthwaite's degrees of freedom from its curvature, as in lmerTest."""
    rng = np.random.default_rng(0)
    seeds, items, tried = 5, 7, 0
    while tried < 3:
        values = crossed(rng, variances, seeds, items)
        differences = CrossedDifferences.of(values)
        part = differences.components
        if min(part.seeds, part.items) < 0.02:  # at the boundary there is no curvature to compare
            continue
        tried += 1
        found = optimize.minimize(
            lambda logs, y=values: restricted_deviance(np.exp(logs), y),
            np.zeros(3),
            method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000},
        )
        estimates = np.exp(found.x)
        assert np.allclose(estimates, [part.seeds, part.items, part.rest], rtol=1e-3)
        gradient = np.array([1 / seeds, 1 / items, 1 / (seeds * items)])
        covariance = 2 * np.linalg.inv(second_derivatives(lambda v, y=values: restricted_deviance(v, y), estimates))
        variance = gradient @ estimates
        df = 2 * variance**2 / (gradient @ covariance @ gradient)
        estimate = differences.estimate()
        assert estimate.variance == pytest.approx(variance, rel=1e-3)
        assert estimate.degrees_of_freedom == pytest.approx(df, rel=2e-2)


@pytest.mark.parametrize("variances", COMPONENTS)
def test_the_variance_of_the_mean(variances: tuple[float, float, float]) -> None:
    """Over many data sets its estimate is right on average, or too large where a component is cut off at zero."""
    rng = np.random.default_rng(1)
    seeds, items = 6, 20
    many = [CrossedDifferences.of(crossed(rng, variances, seeds, items)) for _ in range(4000)]
    truth = variances[0] / seeds + variances[1] / items + variances[2] / (seeds * items)
    assert np.var([one.difference for one in many]) == pytest.approx(truth, rel=0.08)
    assert 0.97 * truth < np.mean([one.estimate().variance for one in many]) < 1.35 * truth


def test_the_analysis_of_variance_by_hand() -> None:
    """Two seeds and two items: [[1, 3], [2, 8]] has means 2 and 5 by seed, 1.5 and 5.5 by item."""
    differences = CrossedDifferences.of(np.array([[1.0, 3.0], [2.0, 8.0]]))
    assert differences.difference == 3.5
    assert differences.mean_squares == pytest.approx((9.0, 16.0, 4.0))
    estimate = differences.estimate()
    assert estimate.variance == pytest.approx((9 + 16 - 4) / 4)
    assert estimate.degrees_of_freedom == pytest.approx(21**2 / (81 + 256 + 16))


@pytest.mark.parametrize(
    ("values", "variance", "df"),
    [
        # No more between seeds than by chance: the items alone.
        ([[1.0, 3.0], [3.0, 5.0], [2.0, 4.0], [2.0, 4.0]], None, None),
        # Neither: the rest alone.
        ([[1.0, -1.0], [-1.0, 1.0]], 1.0, 1.0),
    ],
)
def test_no_component_below_zero(values: list[list[float]], variance: float | None, df: float | None) -> None:
    differences = CrossedDifferences.of(np.array(values))
    of_seeds, of_items, of_rest = differences.mean_squares
    expected = max(of_seeds + of_items - of_rest, of_seeds, of_items, of_rest) / np.size(values)
    estimate = differences.estimate()
    assert estimate.variance == pytest.approx(expected) and estimate.variance > 0
    if variance is not None:
        assert (estimate.variance, estimate.degrees_of_freedom) == pytest.approx((variance, df))


@pytest.mark.parametrize("seeds", [3, 5, 12])
@pytest.mark.parametrize("variances", [(0.1, 5.0, 0.1), (1.0, 10.0, 1.0)])
def test_what_looks_share_is_seldom_overestimated(variances: tuple[float, float, float], seeds: int) -> None:
    """The variance of the items' mean by the variance that one seed adds to the mean."""
    rng, items = np.random.default_rng(6), 50
    shared = [CrossedDifferences.of(crossed(rng, variances, seeds, items)).estimate().shared for _ in range(2000)]
    truth = variances[1] / items / (variances[0] + variances[2] / items)
    assert np.mean(np.array(shared) > truth) < 0.2
    assert 0.1 * truth < np.median(shared) < truth


def test_one_score_a_seed_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    plain, fam = rng.standard_normal((2, 8))
    estimate = SeedDifferences.of(fam - plain).estimate()
    expected = stats.ttest_rel(fam, plain)
    assert 2 * (1 - estimate.probability_above(0.0)) == pytest.approx(
        expected.pvalue if expected.statistic > 0 else 2 - expected.pvalue
    )
    interval = expected.confidence_interval(0.9)
    assert estimate.half_width(0.1) == pytest.approx((interval.high - interval.low) / 2)


def test_two_parts_of_one_variance() -> None:
    """With one part the interval is Student's, and with two it lies between the wider t and the sum of both."""
    one = TEstimate(0.0, ((0.25, 4.0),), 4.0)
    assert one.half_width(0.05) == pytest.approx(stats.t.isf(0.025, 4) * 0.5)
    both = TEstimate(0.0, ((0.25, 4.0), (0.09, 200.0)), 7.0)
    of_seeds, of_items = stats.t.isf(0.025, 4) * 0.5, stats.t.isf(0.025, 200) * 0.3
    assert both.half_width(0.05) == pytest.approx(math.hypot(of_seeds, of_items))


@pytest.mark.parametrize("level", [0.05, 0.01, 0.01 / 12])
@pytest.mark.parametrize("share_of_seeds", [0.02, 0.3, 0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_coverage(seeds: int, share_of_seeds: float, level: float) -> None:
    """The interval covers with its confidence whatever the shares of seeds and items, far out in the tail as well."""
    rng = np.random.default_rng(3)
    many, items = 400_000, 300
    chi_seeds = share_of_seeds * rng.chisquare(seeds - 1, many) / (seeds - 1)
    chi_items = (1 - share_of_seeds) * rng.chisquare(items - 1, many) / (items - 1)
    of_seeds = TEstimate(0.0, ((1.0, seeds - 1.0),), 0.0).half_width(level)
    of_items = TEstimate(0.0, ((1.0, items - 1.0),), 0.0).half_width(level)
    missed = rng.standard_normal(many) ** 2 > of_seeds**2 * chi_seeds + of_items**2 * chi_items
    assert missed.mean() <= level + 3 * math.sqrt(level / many)


def test_satterthwaite_alone_does_not_cover_far_in_the_tail() -> None:
    """Why the interval does not use it: three seeds with most of the variance, at the first look of 12 methods."""
    rng = np.random.default_rng(4)
    many, items, level = 400_000, 300, 0.01 / 12
    of_seeds = 0.9 * rng.chisquare(2, many) / 2
    of_items = 0.1 * rng.chisquare(items - 1, many) / (items - 1)
    variance = of_seeds + of_items
    df = variance**2 / (of_seeds**2 / 2 + of_items**2 / (items - 1))
    missed = np.abs(rng.standard_normal(many)) > stats.t.isf(level / 2, df) * np.sqrt(variance)
    assert missed.mean() > 5 * level


@pytest.mark.parametrize(("seeds", "tolerance"), [(3, 0.025), (5, 0.02), (12, 0.015)])
@pytest.mark.parametrize("variances", [(1e-3, 0.1, 0.1), (0.01, 0.1, 0.1), (0.1, 0.1, 0.1)])
def test_the_probability_of_a_gain_means_what_it_says(
    variances: tuple[float, float, float], seeds: int, tolerance: float
) -> None:
    """Where the true gain equals the margin, it is called above the margin with 95 % probability in about 5 %."""
    rng = np.random.default_rng(5)
    many = [CrossedDifferences.of(0.5 + crossed(rng, variances, seeds, 50)).estimate() for _ in range(4000)]
    assert np.mean([one.probability_above(0.5) >= 0.95 for one in many]) <= 0.05 + tolerance


def test_nadeau_and_bengio() -> None:
    """By hand: differences .02, .00, .04, .02 have variance 0.0008 / 3; nine tenths train and one tenth tests."""
    estimate = SeedDifferences.of(np.array([0.02, 0.0, 0.04, 0.02]), test_to_train_ratio=1 / 9).estimate()
    assert estimate.difference == pytest.approx(0.02)
    assert estimate.variance == pytest.approx((1 / 4 + 1 / 9) * 0.0008 / 3)
    t = 0.02 / math.sqrt((1 / 4 + 1 / 9) * 0.0008 / 3)
    assert estimate.degrees_of_freedom == 3
    assert estimate.probability_above(0.0) == pytest.approx(stats.t.cdf(t, 3))


def test_nadeau_and_bengio_through_the_front_door() -> None:
    plain, fam = np.full(4, 0.5), np.array([0.52, 0.5, 0.54, 0.52])
    compared = compare_methods(
        {"plain": Scores(plain), "fam": Scores(fam)},
        baseline="plain",
        margin=0.0,
        looks=(4,),
        test_to_train_ratio=1 / 9,
    )["fam"]
    # One look at 4 seeds spends 16 / 52 of 5 %.
    width = stats.t.isf(0.05 * 16 / 52 / 2, 3) * math.sqrt((1 / 4 + 1 / 9) * 0.0008 / 3)
    assert (compared.low, compared.high) == pytest.approx((0.02 - width, 0.02 + width))
    assert compared.degrees_of_freedom == 3


def test_equal_differences_are_no_proof() -> None:
    """Differences of one test item up, one down or none: three alike are common, and zero has to stay in."""
    units, level = np.array([3, 5, 8, 12]), 0.01
    by_chance = 2 * 0.5**units  # all up or all down, at the worst probability
    for n, probability in zip(units, by_chance, strict=True):
        leaves_zero_out = ConstantEstimate(1.0, reach=2.0, units=n).half_width(level) < 1.0
        assert not (leaves_zero_out and probability > level)
    assert ConstantEstimate(1.0, reach=2.0, units=12).half_width(level) < 1.0
