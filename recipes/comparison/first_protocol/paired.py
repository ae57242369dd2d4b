"""Paired tests of the first protocol, by scipy: same seed, same data, initial weights and order of batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Of two lists of results, pair by pair.

    Attributes:
        mean: of ``values - baseline``.
        t: p-value of the two-sided paired t test.
        wilcoxon: p-value of the two-sided Wilcoxon signed-rank test; with n pairs it cannot be below 2 / 2^n.
        low: lower end of the one-sided 95 % confidence interval of the mean.
        pairs: how many.
    """

    mean: float
    t: float
    wilcoxon: float
    low: float
    pairs: int


def compare(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return both tests; p is 1 where nothing differs and not a number where there is one pair."""
    d = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, n)
    if not d.any():
        return Difference(mean, 1.0, 1.0, mean, n)
    if not d.std():
        return Difference(mean, 0.0, float(stats.wilcoxon(d).pvalue), mean, n)
    t = stats.ttest_1samp(d, 0.0)
    low = stats.ttest_1samp(d, 0.0, alternative="greater").confidence_interval(0.95).low
    return Difference(mean, float(t.pvalue), float(stats.wilcoxon(d).pvalue), float(low), n)
