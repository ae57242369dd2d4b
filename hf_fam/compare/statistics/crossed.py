"""One test file: seeds and test items vary, crossed with each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .distributions import chi_square_quantile
from .estimate import Estimate, TEstimate, UnknownEstimate


@dataclass(frozen=True)
class VarianceComponents:
    """Of ``d[s, i] = mean + seed[s] + item[i] + rest[s, i]``.

    Attributes:
        seeds: variance between seeds, over all items.
        items: variance between test items, over all seeds.
        rest: variance of what belongs to one seed and one item.
    """

    seeds: float
    items: float
    rest: float


@dataclass(frozen=True)
class CrossedDifferences:
    """Differences of every seed at every test item.

    The interval is about the mean over all seeds *and* over all items of which the test file is a sample. So it does
    not shrink to zero with more seeds.

    Attributes:
        difference: mean over seeds and items.
        mean_squares: of seeds, of items and of the rest, as in a two-way analysis of variance without repetition.
            Source: Searle, Casella and McCulloch 1992, Variance Components, chapter 4.
        seeds: how many.
        items: how many.

    Example:
        >>> values = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
        >>> differences = CrossedDifferences.of(values)
        >>> [round(x, 3) for x in differences.mean_squares], round(differences.estimate().degrees_of_freedom, 2)
        ([0.083, 0.528, 0.194], 3.0)
    """

    difference: float
    mean_squares: tuple[float, float, float]
    seeds: int
    items: int

    @classmethod
    def of(cls, values: np.ndarray[Any, Any]) -> CrossedDifferences:
        """Return the differences of shape (seeds, items) in brief."""
        seeds, items = values.shape
        mean = values.mean()
        by_seed, by_item = values.mean(1) - mean, values.mean(0) - mean
        rest = values - mean - by_seed[:, None] - by_item
        squares = (
            float(by_seed @ by_seed) * items / max(seeds - 1, 1),
            float(by_item @ by_item) * seeds / max(items - 1, 1),
            float((rest**2).sum()) / max((seeds - 1) * (items - 1), 1),
        )
        return cls(float(mean), squares, seeds, items)

    @property
    def components(self) -> VarianceComponents:
        """The variance components, estimated from the mean squares; negative ones are zero."""
        seeds, items, rest = self.mean_squares
        return VarianceComponents(max(seeds - rest, 0.0) / self.items, max(items - rest, 0.0) / self.seeds, rest)

    def estimate(self) -> Estimate:
        """Return the mean difference and its error."""
        seeds, items = self.seeds, self.items
        if seeds < 2 or items < 2:
            return UnknownEstimate(self.difference)
        of_seeds, of_items, of_rest = self.mean_squares
        size = seeds * items
        # The variance of the mean is (E of_seeds + E of_items - E of_rest) / size; no component is below zero.
        variance = (max(of_seeds - of_rest, 0.0) + max(of_items - of_rest, 0.0) + of_rest) / size
        by_seeds = of_seeds / size
        by_items = max(variance - by_seeds, 0.0)
        # The variance of few seeds may be small by chance. It is above this part of its mean in nine of ten cases.
        likely = chi_square_quantile(0.1, seeds - 1) / (seeds - 1)
        shared = likely * by_items / (seeds * by_seeds) if by_seeds else 0.0
        parts = ((by_seeds, seeds - 1.0), (by_items, items - 1.0))
        return TEstimate(self.difference, parts, self._satterthwaite(), shared)

    def _satterthwaite(self) -> float:
        """Return the degrees of freedom of the estimated variance of the mean."""
        of_seeds, of_items, of_rest = self.mean_squares
        has_seeds, has_items = of_seeds > of_rest, of_items > of_rest
        terms = [(of_seeds, self.seeds - 1)] if has_seeds else []
        terms += [(of_items, self.items - 1)] if has_items else []
        if has_seeds == has_items:
            terms.append((-of_rest if has_seeds else of_rest, (self.seeds - 1) * (self.items - 1)))
        return float(sum(square for square, _ in terms) ** 2 / sum(square**2 / df for square, df in terms))

    def with_size(self, seeds: int, items: int | None) -> CrossedDifferences:
        """Return what is expected of more seeds or items with the same mean and variance components."""
        part, items = self.components, items or self.items
        squares = (part.rest + items * part.seeds, part.rest + seeds * part.items, part.rest)
        return CrossedDifferences(self.difference, squares, seeds, items)
