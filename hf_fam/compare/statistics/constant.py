"""Differences that were the same in every seed and item."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .estimate import ConstantEstimate, Estimate, UnknownEstimate


@dataclass(frozen=True)
class ConstantDifferences:
    """Differences that were the same in every seed and item; see `ConstantEstimate`.

    Attributes:
        difference: the constant.
        reach: how far another difference may be from it.
        seeds: how many.
        items: how many; None with one score for each seed.
        test_to_train_ratio: ``n_test / n_train`` of repeated splits, or None.
    """

    difference: float
    reach: float
    seeds: int
    items: int | None
    test_to_train_ratio: float | None = None

    def estimate(self) -> Estimate:
        """Return the difference and its error."""
        if self.seeds < 2 or self.items == 1:
            return UnknownEstimate(self.difference)
        units = self.items or 1 / (1 / self.seeds + (self.test_to_train_ratio or 0.0))
        return ConstantEstimate(self.difference, self.reach, units)

    def with_size(self, seeds: int, items: int | None) -> ConstantDifferences:
        """Return the same of more seeds or items."""
        return replace(self, seeds=seeds, items=items)
