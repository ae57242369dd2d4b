"""Make the runs of a plan, one look after the other, until the comparison is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .budget import Clock
from .gathering import Gathered
from .journal import Journal
from .outcome import UNDECIDED
from .plan import Plan
from .processes import Processes
from .progress import Progress
from .result import ComparisonResult
from .runs import Run
from .training import Task
from .workers import Workers


class Engine:
    """Makes the runs of a plan until the comparison is decided.

    Args:
        task: what all runs share.
        plan: which runs there are.
        journal: finished runs.
        mark: fingerprint of what all runs depend on.
        clock: time and budget.
        workers: execute runs.
        processes: processes of a launcher.
        on_progress: called after each run.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        journal: Journal,
        mark: str,
        clock: Clock,
        workers: Workers,
        processes: Processes,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.task, self.plan, self.workers = task, plan, workers
        self._journal, self._mark, self._clock, self._processes = journal, mark, clock, processes
        self._on_progress = on_progress
        self._gathered = Gathered(plan.methods, task.metric)
        self._is_budget_used = False

    def compare(self, margin: float, confidence: float, details: dict[str, Any]) -> ComparisonResult:
        """Make the runs and return the outcome.

        Args:
            margin: in the unit of the metric.
            confidence: of the intervals.
            details: settings, for the report.
        """
        from .statistics import looks

        stops = looks(self.plan.seeds)
        done = 0
        for look, stop in enumerate(stops):
            for seed in range(done, stop):
                split = self.plan.split(seed)
                if not self._tune(split):
                    break
                if not self._make(self.plan.final(seed, self._gathered.chosen)):
                    break
            done = self._gathered.seeds
            result = self._result(margin, confidence, look, stops, details)
            is_decided = done >= 2 and all(m.verdict != UNDECIDED for m in result.methods[1:])
            if self._is_budget_used or is_decided or done < stop:
                return result
        return result

    def _tune(self, split: int) -> bool:
        if not self._make(self.plan.tuning(split)):
            return False
        for method in self.plan.methods:
            self._gathered.choose(method, split, self.plan.grids[method])
        return True

    def _make(self, runs: Sequence[Run]) -> bool:
        """Make runs that are not finished yet; return False if the budget is used before all are."""
        for run in runs:
            key = run.key(self._mark)
            if key in self._journal and run not in self._gathered:
                self._gathered.add(run, self._journal[key])
        missing = [run for run in runs if run not in self._gathered]
        for run, record in self._processes.broadcast(self.workers.run(missing, self._is_time_left)):
            record = {"key": run.key(self._mark), **record}
            self._journal.append(record)
            self._gathered.add(run, record)
            self._report(run)
        is_complete = all(run in self._gathered for run in runs)
        self._is_budget_used = self._is_budget_used or not is_complete
        return is_complete

    def _is_time_left(self, run: Run) -> bool:
        return self._processes.agree(self._clock.is_enough_for(self._gathered.expected_seconds(run)))

    def _report(self, run: Run) -> None:
        if self._on_progress is not None and self._processes.is_main:
            done, elapsed, jobs = len(self._gathered), self._clock.elapsed, self.workers.jobs
            self._on_progress(Progress(self._gathered.interim(), run, done, self.plan, elapsed, jobs))

    def _seconds_missing(self) -> float:
        """Return about how much more time two seeds need."""
        runs = self.plan.size(2) - len(self._gathered)
        return max(runs, 0) * self._gathered.mean_seconds / self.workers.jobs

    def _result(
        self, margin: float, confidence: float, look: int, stops: Sequence[int], details: dict[str, Any]
    ) -> ComparisonResult:
        splits = self.task.splits
        return self._gathered.result(
            margin=margin,
            confidence=confidence,
            look=look,
            looks=stops,
            ratio=splits.test_to_train_ratio,
            examples=None if splits.has_test else splits.count,
            seconds=self._clock.elapsed,
            is_budget_used=self._is_budget_used,
            has_test=splits.has_test,
            seconds_missing=self._seconds_missing(),
            grids=self.plan.grids,
            details=details,
        )
