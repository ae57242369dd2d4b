"""From runs to the sentence: scores, looks and budget in the engine, with runs that only draw their score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from hf_fam.compare.budget import Clock
from hf_fam.compare.engine import Engine
from hf_fam.compare.journal import Journal, pack
from hf_fam.compare.metric import Metric
from hf_fam.compare.plan import Plan
from hf_fam.compare.processes import Processes
from hf_fam.compare.result import ComparisonResult
from hf_fam.compare.runs import FINAL, Run, Settings
from hf_fam.compare.splits import Splits
from hf_fam.compare.training import Task

COMPARISONS, MOST = 400, 31
METHODS = ["plain", "fam", "sam", "ema"]


class FakeWorkers:
    """Runs that take no time; each final run has a score, or a score for each test item.

    Args:
        score: of a run, in percent.
        most_runs: how many the budget allows.
    """

    jobs = 1

    def __init__(self, score: Callable[[Run], Any], most_runs: int | None = None) -> None:
        self._score, self._left = score, most_runs

    def run(self, runs: Iterable[Run], is_time_left: Callable[[Run], bool]) -> Iterator[tuple[Run, dict[str, Any]]]:
        for run in runs:
            if self._left is not None:
                if self._left == 0:
                    return
                self._left -= 1
            scores = np.atleast_1d(np.asarray(self._score(run), dtype=np.float64))
            items = pack(scores) if run.phase == FINAL and len(scores) > 1 else None
            more = {"nll": None, "seconds": 1.0, "all_seconds": 1.0, "curve": [], "steps": 1, "diverged": False}
            yield run, {**run.describe(), "score": float(scores.mean()), "items": items, **more}


def compared(score: Callable[[Run], Any], has_test: bool, most_runs: int | None = None) -> ComparisonResult:
    grids = {method: [Settings(1e-3, None), Settings(3e-3, None)] for method in METHODS}
    plan = Plan(METHODS, grids, has_test, seeds=12, repeats=1)
    splits = Splits([0, 1] * 60, 120, has_test, has_validation=False)
    task = Task(None, None, None, splits, Metric(), {})  # type: ignore[arg-type]
    workers: Any = FakeWorkers(score, most_runs)
    engine = Engine(task, plan, Journal(None, True), "", Clock(None), workers, Processes(1), None)
    return engine.compare(0.5, 0.95, {})


def equal_on_one_test_file(rng: np.random.Generator) -> Callable[[Run], Any]:
    """Items are easy or hard for all methods, and somewhat more for some of them; seeds differ a little."""
    ease = {name: rng.normal(0, 0.5, 200) for name in METHODS}
    shared = rng.normal(1.5, 2.0, 200)

    def score(run: Run) -> Any:
        if run.phase != FINAL:
            return rng.random()
        return 100.0 * (shared + ease[run.method] + rng.normal(0, 0.2) + rng.logistic(0, 1, 200) > 0)

    return score


def equal_on_splits(rng: np.random.Generator) -> Callable[[Run], Any]:
    """Scores of splits of one data set: a quarter of their variance is the data set's, as n_test / n is."""
    own = {name: rng.normal(0, 0.5) for name in METHODS}
    return lambda run: 80 + own[run.method] + 0.75**0.5 * rng.standard_normal()


@pytest.mark.parametrize("kind", [equal_on_one_test_file, equal_on_splits])
def test_equal_methods_are_called_different_in_at_most_five_percent(kind: Any) -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(COMPARISONS):
        result = compared(kind(rng), has_test=kind is equal_on_one_test_file)
        wrong += any(m.comparison.low > 0 or m.comparison.high < 0 for m in result.methods[1:])
    assert wrong <= MOST


@pytest.mark.parametrize("most_runs", [8, 16, 17, 20, 21, 22, 24, 28, 29, 40])
def test_a_budget_may_end_anywhere(most_runs: int) -> None:
    """Also before the first look, between two looks, and before a look has one new seed."""
    rng = np.random.default_rng(most_runs)
    for kind in (equal_on_one_test_file, equal_on_splits):
        result = compared(kind(rng), kind is equal_on_one_test_file, most_runs)
        assert "ndecided" in str(result) or "same" in str(result)
