"""Paired comparisons: the same seed means the same data, the same initial weights and the same order of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Of two lists of results, pair by pair.

    Attributes:
        mean: of ``values - baseline``.
        deviation: standard deviation between pairs.
        t: p-value of the two-sided paired t test.
        wilcoxon: p-value of the two-sided Wilcoxon signed-rank test; with n pairs it cannot be below 2 / 2^n.
        low: lower end of the one-sided 95 % confidence interval of the mean.
        pairs: how many.
    """

    mean: float
    deviation: float
    t: float
    wilcoxon: float
    low: float
    pairs: int


def compare(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Both tests; p is 1 where nothing differs and not a number where there is one pair."""
    d = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Difference(mean, float("nan"), float("nan"), float("nan"), float("nan"), n)
    deviation = float(d.std(ddof=1))
    error = deviation / n**0.5
    if not d.any():
        return Difference(mean, deviation, 1.0, 1.0, mean, n)
    t = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else 0.0
    wilcoxon = float(stats.wilcoxon(d).pvalue)
    return Difference(mean, deviation, t, wilcoxon, mean - float(stats.t.ppf(0.95, n - 1)) * error, n)
