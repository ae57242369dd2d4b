"""What a comparison measured and decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .metric import Metric
from .runs import Settings

if TYPE_CHECKING:
    from .statistics import Comparison

BETTER, SAME, WORSE, UNDECIDED = "better", "same", "worse", "undecided"

# An undecided interval is shown if its standard error has at least these degrees of freedom: those of three splits.
LEAST_DEGREES_OF_FREEDOM = 2


@dataclass(frozen=True)
class MethodResult:
    """What was measured of one method.

    Attributes:
        name: the method.
        chosen: settings that the tuning chose; one for each split, or a single one if there is a test set.
        scores: mean score of each final run, shape ``(seeds,)``.
        nll: mean negative log-likelihood; None without classes.
        seconds: mean time of a final run.
        comparison: difference from the baseline; None for the baseline itself, or with fewer than two seeds.
        tried: settings that were tried, with their mean validation score.
        curves: for each final run, pairs of epoch and training loss.
        edges: of ``"learning rate"`` and ``"strength"``, what was chosen at an edge of its grid.
        diverged: number of final runs that diverged.
    """

    name: str
    chosen: Sequence[Settings]
    scores: NDArray[np.float64]
    nll: float | None
    seconds: float
    comparison: Comparison | None
    tried: Sequence[tuple[Settings, float]] = ()
    curves: Sequence[Sequence[tuple[float, float]]] = ()
    edges: Sequence[str] = ()
    diverged: int = 0

    @property
    def verdict(self) -> str:
        """Return ``"better"``, ``"same"``, ``"worse"`` or ``"undecided"``."""
        return UNDECIDED if self.comparison is None else str(self.comparison.verdict.value)

    @property
    def settings(self) -> Settings:
        """Return the settings that were chosen most often; without values before the tuning has ended."""
        return max(self.chosen, key=[*self.chosen].count, default=Settings(None, None))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison.

    Attributes:
        methods: the baseline first.
        metric: what was measured.
        margin: differences up to it make no practical difference.
        confidence: of the intervals.
        seeds: number of seeds with a final run of every method.
        runs: number of all runs, tuning included.
        seconds: time of this call.
        is_budget_used: True if the comparison stopped because its budget was used.
        has_test: True if there is a test set.
        seconds_missing: about how much more time two seeds need, which a first interval takes.
        details: settings of the whole comparison, for the report.
    """

    methods: Sequence[MethodResult]
    metric: Metric
    margin: float
    confidence: float
    seeds: int
    runs: int
    seconds: float
    is_budget_used: bool
    has_test: bool
    seconds_missing: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def shows_interval(self, method: MethodResult) -> bool:
        """Return True if a method's interval says something: few runs leave almost every difference possible.

        Args:
            method: one of the methods.
        """
        c = method.comparison
        if c is None or method.verdict != UNDECIDED:
            return c is not None
        return c.degrees_of_freedom >= LEAST_DEGREES_OF_FREEDOM and c.high - c.low < self.metric.largest_difference

    @property
    def baseline(self) -> MethodResult:
        """Return the result of the baseline."""
        return self.methods[0]

    @property
    def best(self) -> MethodResult:
        """Return the method to use: the one with the largest gain among those that are better, or the baseline."""
        better = [m for m in self.methods[1:] if m.verdict == BETTER and m.comparison is not None]
        sign = 1 if self.metric.higher_is_better else -1
        return max(better, key=lambda m: sign * (m.comparison.difference if m.comparison else 0), default=self.baseline)
