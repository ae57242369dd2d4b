"""What a comparison will do, known before its first run."""

from __future__ import annotations

from dataclasses import dataclass

from .budget import format_time
from .plan import Plan
from .runs import FINAL, TUNING, Run
from .splits import Splits


@dataclass(frozen=True)
class Start:
    """What a comparison will do.

    Attributes:
        plan: its runs.
        splits: which rows a run uses.
        test_rows: number of rows of the test set; None without one.
        layer: name of the layer whose flatness FAM adds; None without FAM.
        strengths: strength in the middle of the grid, by method.
        device: where the runs are made.
        seconds: about how long a run of plain training takes; None if it was not measured.
        finished: number of runs that are finished already, of an earlier call.
        folder: where finished runs are kept; None: nowhere.
        jobs: number of runs at the same time.
        margin: the largest difference that makes no practical difference, with its unit.
    """

    plan: Plan
    splits: Splits
    test_rows: int | None
    layer: str | None
    strengths: dict[str, float]
    device: str
    seconds: float | None
    finished: int
    folder: str | None
    jobs: int
    margin: str

    def lines(self) -> list[tuple[str, str]]:
        """Return what a person wants to know, each with its heading."""
        found = [("methods", ", ".join(self._method(name) for name in self.plan.methods)), ("split", self._split())]
        found.append(("runs", self._runs()))
        if self.finished:
            runs = "1 finished run" if self.finished == 1 else f"{self.finished} finished runs"
            found.append(("found", f"{runs} in {self.folder}, which count and are not made again"))
        found.append(("time", self._time()))
        return found

    def _method(self, name: str) -> str:
        notes = [f"layer {self.layer}"] if name == "fam" and self.layer is not None else []
        strength = self.strengths.get(name)
        if strength is not None:
            notes.append(f"{'lambda' if name == 'fam' else 'strength'} {strength:g}")
        return f"{name} ({', '.join(notes)})" if notes else name

    def _split(self) -> str:
        first = self.plan.methods[0]
        settings = self.plan.grids[first][0]
        train, test = self.splits.rows(Run(FINAL, first, settings, 0, 0))
        count = self.test_rows if test is None else len(test)
        text = f"{len(train):,} rows to train, {count:,} to test"
        text += ", the same in every seed" if test is None else f", another {self._kind} for each of the splits"
        if self.plan.tuning(0):
            _, scored = self.splits.rows(Run(TUNING, first, settings, 0, 0))
            where = "the validation data" if scored is None else f"{len(scored):,} of the rows to train"
            text += f"; settings are chosen by {where}"
        return text

    @property
    def _kind(self) -> str:
        return "random choice" if self.splits.labels is None else "stratified choice"

    def _runs(self) -> str:
        plan = self.plan
        total, final = plan.size(plan.seeds), plan.seeds * len(plan.methods)
        what = "seeds" if plan.has_test else "splits"
        tuned = f"{total - final} to choose the settings, " if total > final else ""
        return (
            f"at most {total}: {tuned}{final} for {plan.seeds} {what}; fewer if it is decided earlier, at a margin of "
            f"{self.margin}"
        )

    def _time(self) -> str:
        where = f"on {self.device}" + (f", {self.jobs} runs at the same time" if self.jobs > 1 else "")
        left = max(self.plan.size(self.plan.seeds) - self.finished, 0) * (self.seconds or 0.0) / self.jobs
        if not left:
            return where
        run = f"a run of {self.plan.methods[0]} training takes about {format_time(self.seconds or 0.0)}"
        return f"{where}; {run}, and all of them about {format_time(left)}"
