"""One score for each seed: of one test file, or of repeated splits that overlap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .estimate import Estimate, TEstimate, UnknownEstimate


@dataclass(frozen=True)
class SeedDifferences:
    """Differences of one score for each seed.

    Without repeated splits the interval is about new seeds on *this* test file. What the test file itself adds to the
    error cannot be seen from one score for each seed.

    Repeated splits share examples, so their mean varies more than the variance between them suggests. The variance of
    the mean is corrected to ``variance * (1 / repeats + n_test / n_train)``, with ``repeats - 1`` degrees of freedom
    (the corrected resampled t-test; Nadeau and Bengio 2003, Machine Learning 52). More repeats do not bring it below
    ``variance * n_test / n_train``; more examples do.

    Attributes:
        difference: mean over seeds.
        sample_variance: between seeds.
        seeds: how many, of repeats with repeated splits.
        test_to_train_ratio: ``n_test / n_train`` of repeated splits, or None.
        items: labeled examples of repeated splits, for advice.

    Example:
        >>> differences = SeedDifferences.of(np.array([0.01, 0.03, 0.02]), test_to_train_ratio=0.25)
        >>> round(differences.estimate().variance ** 0.5, 5)
        0.00764
    """

    difference: float
    sample_variance: float
    seeds: int
    test_to_train_ratio: float | None = None
    items: int | None = None

    @classmethod
    def of(
        cls, values: np.ndarray[Any, Any], test_to_train_ratio: float | None = None, items: int | None = None
    ) -> SeedDifferences:
        """Return the differences of shape (seeds,) in brief."""
        seeds = len(values)
        variance = float(values.var(ddof=1)) if seeds > 1 else float("inf")
        return cls(float(values.mean()), variance, seeds, test_to_train_ratio, items)

    @property
    def independent_seeds(self) -> float:
        """How many independent seeds would give a mean with the same variance."""
        return 1 / (1 / self.seeds + (self.test_to_train_ratio or 0.0))

    def estimate(self) -> Estimate:
        """Return the mean difference and its error."""
        if self.seeds < 2:
            return UnknownEstimate(self.difference)
        df = self.seeds - 1.0
        parts = ((self.sample_variance / self.independent_seeds, df),)
        return TEstimate(self.difference, parts, df, shared=self.test_to_train_ratio or 0.0)

    def with_size(self, seeds: int, items: int | None) -> SeedDifferences:
        """Return what is expected of more seeds, or of splits of more examples, with the same mean.

        The variance of a score goes with one over the number of test items.
        """
        shrinkage = self.items / items if self.items and items else 1.0
        return replace(self, sample_variance=self.sample_variance * shrinkage, seeds=seeds, items=items)
