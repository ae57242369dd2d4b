"""Collect the records of runs, choose settings, and compute the outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .journal import Record, unpack
from .metric import Metric
from .outcome import MethodResult
from .result import ComparisonResult
from .runs import FINAL, TUNING, Run, Settings, edges

if TYPE_CHECKING:
    from .statistics import Comparison


class Gathered:
    """Finished runs of a comparison.

    Args:
        methods: names, the baseline first.
        metric: what is measured.
    """

    def __init__(self, methods: Sequence[str], metric: Metric) -> None:
        self._methods, self._metric = methods, metric
        self._records: dict[Run, Record] = {}
        self.chosen: dict[tuple[str, int], Settings] = {}

    def __contains__(self, run: Run) -> bool:
        return run in self._records

    def __len__(self) -> int:
        return len(self._records)

    def add(self, run: Run, record: Record) -> None:
        """Add a finished run."""
        self._records[run] = record

    def choose(self, method: str, split: int, tried: Sequence[Settings]) -> None:
        """Choose the settings of a method with the best mean validation score; ties by likelihood, then by order."""
        sign = 1.0 if self._metric.higher_is_better else -1.0

        def merit(settings: Settings) -> tuple[float, float]:
            records = self._tuning(method, split, settings)
            if not records:
                return 0.0, 0.0
            scores = [sign * r["score"] - 1e6 * r["diverged"] for r in records]
            losses = [r["nll"] for r in records if r["nll"] is not None]
            return float(np.mean(scores)), -float(np.mean(losses)) if losses else 0.0

        self.chosen[method, split] = max(tried, key=merit)

    def expected_seconds(self, run: Run) -> float:
        """Return about how long a run takes, by those that are finished; 0 before the first one."""
        same = [r["all_seconds"] for done, r in self._records.items() if done.method == run.method]
        return float(np.mean(same)) if same else self.mean_seconds

    @property
    def mean_seconds(self) -> float:
        """Return the mean time of a run; 0 before the first one."""
        return _mean([r["all_seconds"] for r in self._records.values()]) or 0.0

    @property
    def seeds(self) -> int:
        """Return the number of seeds, from 0 on, that have a final run of every method."""
        done = {(run.method, run.seed) for run in self._records if run.phase == FINAL}
        count = 0
        while all((method, count) in done for method in self._methods):
            count += 1
        return count

    def interim(self) -> list[tuple[str, int, float | None, float | None]]:
        """Return for each method its name, number of final runs, their mean score and the mean of all runs' seconds."""
        rows = []
        for method in self._methods:
            final = [r["score"] for run, r in self._records.items() if (run.method, run.phase) == (method, FINAL)]
            seconds = [r["all_seconds"] for run, r in self._records.items() if run.method == method]
            rows.append((method, len(final), _mean(final), _mean(seconds)))
        return rows

    def result(
        self,
        *,
        margin: float,
        confidence: float,
        look: int,
        looks: Sequence[int],
        ratio: float | None,
        examples: int | None,
        grids: dict[str, list[Settings]],
        **more: Any,
    ) -> ComparisonResult:
        """Return the outcome so far.

        Args:
            margin: differences up to it make no practical difference.
            confidence: of the intervals.
            look: index of this look.
            looks: numbers of seeds at which the comparison may stop.
            ratio: test rows by training rows, if the test parts are those of repeated splits.
            examples: number of labeled rows, if so.
            grids: settings that were tried, by method.
            **more: other attributes of the result.
        """
        from .statistics import Scores, compare_methods

        seeds = self.seeds
        comparisons: dict[str, Any] = {}
        if seeds >= 2:
            comparisons = compare_methods(
                {method: Scores(self._scores(method, seeds, ratio)) for method in self._methods},
                baseline=self._methods[0],
                margin=margin,
                higher_is_better=self._metric.higher_is_better,
                confidence=confidence,
                look=look,
                looks=looks,
                test_to_train_ratio=ratio,
                examples=examples,
            )
            comparisons = {name: readable(c, self._metric) for name, c in comparisons.items()}
        methods = []
        for method in self._methods:
            final = [self._final(method, seed) for seed in range(seeds)]
            nlls = [r["nll"] for r in final if r["nll"] is not None]
            chosen = [
                settings
                for (name, _), settings in sorted(self.chosen.items(), key=lambda entry: entry[0][1])
                if name == method
            ]
            methods.append(
                MethodResult(
                    name=method,
                    chosen=chosen,
                    scores=np.array([r["score"] for r in final]),
                    nll=_mean(nlls),
                    seconds=float(np.mean([r["seconds"] for r in final])) if final else 0.0,
                    comparison=comparisons.get(method),
                    tried=self._tried(method, grids[method]),
                    curves=[[(x, y) for x, y in r["curve"]] for r in final],
                    edges=edges(chosen, grids[method]),
                    diverged=sum(r["diverged"] for r in final),
                )
            )
        return ComparisonResult(methods, self._metric, margin, confidence, seeds, len(self._records), **more)

    def _tuning(self, method: str, split: int | None, settings: Settings) -> list[Record]:
        return [
            record
            for run, record in self._records.items()
            if (run.phase, run.method, run.settings) == (TUNING, method, settings) and split in (None, run.split)
        ]

    def _tried(self, method: str, tried: Sequence[Settings]) -> list[tuple[Settings, float]]:
        means = []
        for settings in tried:
            records = self._tuning(method, None, settings)
            if records:
                means.append((settings, float(np.mean([r["score"] for r in records]))))
        return means

    def _final(self, method: str, seed: int) -> Record:
        return next(r for run, r in self._records.items() if (run.phase, run.method, run.seed) == (FINAL, method, seed))

    def _scores(self, method: str, seeds: int, ratio: float | None) -> NDArray[np.float64]:
        records = [self._final(method, seed) for seed in range(seeds)]
        if ratio is None and all(r["items"] is not None for r in records):
            return np.stack([unpack(r["items"]) for r in records])
        return np.array([r["score"] for r in records])


def readable(comparison: Comparison, metric: Metric) -> Comparison:
    """Return a comparison with an interval of differences that are possible.

    Args:
        comparison: of a method with the baseline.
        metric: what is measured.
    """
    most = metric.largest_difference
    return dataclasses.replace(comparison, low=max(comparison.low, -most), high=min(comparison.high, most))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
