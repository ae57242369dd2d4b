"""How far a comparison is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan
from .runs import Run


@dataclass(frozen=True)
class Progress:
    """How far a comparison is, after a run.

    Attributes:
        methods: for each method its name, the number of final runs, their mean score, and the mean seconds of a run.
        run: the run that ended.
        done: number of finished runs, also those of earlier calls.
        plan: which runs there are.
        elapsed: seconds since this call began.
        jobs: number of runs at the same time.
    """

    methods: Sequence[tuple[str, int, float | None, float | None]]
    run: Run
    done: int
    plan: Plan
    elapsed: float
    jobs: int

    @property
    def total(self) -> int:
        """Return the number of runs, if all seeds are needed."""
        return self.plan.size(self.plan.seeds)

    @property
    def seconds_left(self) -> float:
        """Return about how many seconds all remaining runs take."""
        known = [seconds for *_, seconds in self.methods if seconds is not None]
        mean = sum(known) / len(known)
        return (self.total - self.done) * mean / self.jobs
