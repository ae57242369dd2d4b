"""Tables of results: methods with their settings chosen on validation, compared with plain training pair by pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .paired import Difference, compare

Record = dict[str, Any]
PLAIN = "plain"


def family(record: Record) -> str:
    """What counts as one method: its name and everything in its configuration that is not a number to be tuned."""
    words = (v for v in record["configuration"].values() if isinstance(v, str))
    return " ".join([record["method"], *words])


def tuned(record: Record) -> str:
    """The numbers of a configuration."""
    return ", ".join(f"{k} {v:g}" for k, v in record["configuration"].items() if not isinstance(v, (str, bool)))


def at_its_settings(record: Record) -> Record:
    """Return the run of ``tuned`` as plain training at those settings."""
    if record["method"] != "tuned":
        return record
    settings = {**record["settings"], **record["configuration"]}
    return {**record, "settings": settings, "method": PLAIN, "configuration": {}}


def score(record: Record, part: str = "test") -> float:
    """The task's metric."""
    return record[part][record["metric"]]


def nll(record: Record, part: str = "test") -> float:
    return record[part]["nll"]


def group(records: Iterable[Record], by: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[by(record)].append(record)
    return dict(groups)


@dataclass(frozen=True)
class Row:
    """One method on one task, with the configuration that validation chose.

    Attributes:
        family: see `family`.
        chosen: see `tuned`.
        tried: how many configurations there were.
        diverged: how many runs of all configurations diverged.
        records: those of the chosen configuration.
        metric: difference from plain training in the task's metric, or None for plain itself.
        nll: the same in negative log-likelihood.
        cost: processor time relative to plain training, median over seeds.
    """

    family: str
    chosen: str
    tried: int
    diverged: int
    records: list[Record]
    metric: Difference | None
    nll: Difference | None
    cost: float

    def mean(self, value: Callable[[Record], float]) -> tuple[float, float]:
        """Mean and standard deviation over seeds."""
        values = [value(r) for r in self.records]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def rows(records: list[Record]) -> list[Row]:
    """The table of one task in one regime; plain training comes first."""
    plain = {r["seed"]: r for r in records if family(r) == PLAIN and "diverged" not in r}
    table = []
    for name, members in group(records, family).items():
        configurations = group(members, tuned)
        diverged = sum("diverged" in r for r in members)
        # A configuration that diverged once is not chosen, nor one that has fewer seeds than others.
        sound = {k: c for k, c in configurations.items() if not any("diverged" in r for r in c)}
        most = max((len(c) for c in sound.values()), default=0)
        sound = {k: c for k, c in sound.items() if len(c) == most}
        if not sound:
            table.append(Row(name, "diverged", len(configurations), diverged, [], None, None, float("nan")))
            continue
        chosen = max(sound, key=lambda k: _validation(sound[k]))
        best = sound[chosen]
        both = [(r, plain[r["seed"]]) for r in best if r["seed"] in plain]
        paired = both and name != PLAIN
        table.append(
            Row(
                family=name,
                chosen=chosen,
                tried=len(configurations),
                diverged=diverged,
                records=best,
                metric=difference(both, score) if paired else None,
                nll=difference(both, nll) if paired else None,
                cost=float(np.median([r["cpu_seconds"] / p["cpu_seconds"] for r, p in both])) if both else float("nan"),
            )
        )
    return sorted(table, key=lambda row: (row.family != PLAIN, row.family))


def _validation(records: list[Record]) -> tuple[float, float]:
    """By the task's metric, then by likelihood."""
    values = [(score(r, "validation"), -nll(r, "validation")) for r in records]
    return tuple(np.mean(values, axis=0))


def difference(pairs: list[tuple[Record, Record]], value: Callable[[Record], float]) -> Difference:
    return compare([value(r) for r, _ in pairs], [value(p) for _, p in pairs])


@dataclass(frozen=True)
class OneForAll:
    """One configuration on every task of a regime.

    Attributes:
        family: see `family`.
        chosen: see `tuned`.
        by_task: mean difference from plain training in the task's metric and in NLL.
        metric: over all tasks and seeds.
        nll: the same.
        diverged: number of runs that did.
    """

    family: str
    chosen: str
    by_task: dict[str, tuple[float, float]]
    metric: Difference | None
    nll: Difference | None
    diverged: int

    @property
    def worst(self) -> float:
        """Metric in the task where it is least good; nothing is worse than to diverge."""
        return -1.0 if self.diverged else min(m for m, _ in self.by_task.values())

    @property
    def mean_nll(self) -> float:
        return float("inf") if self.diverged else float(np.mean([v for _, v in self.by_task.values()]))


def one_for_all(records: list[Record], part: str = "test") -> list[OneForAll]:
    """Every configuration that was run on all tasks of these records, against plain training.

    Args:
        records: of one regime.
        part: ``"validation"`` to choose by it, ``"test"`` to report.
    """
    plain = {(r["task"], r["seed"]): r for r in records if family(r) == PLAIN and "diverged" not in r}
    tasks = sorted({r["task"] for r in records})
    candidates = []
    for (name, chosen), members in group(records, lambda r: (family(r), tuned(r))).items():
        if name == PLAIN or {r["task"] for r in members} != set(tasks):
            continue
        diverged = sum("diverged" in r for r in members)
        sound = [r for r in members if "diverged" not in r and (r["task"], r["seed"]) in plain]
        pairs = [(r, plain[r["task"], r["seed"]]) for r in sound]
        by_task = {}
        for task in tasks:
            here = [(r, p) for r, p in pairs if r["task"] == task]
            if here:
                by_task[task] = tuple(
                    float(np.mean([value(r, part) - value(p, part) for r, p in here])) for value in (score, nll)
                )
        if by_task:
            metric, likelihood = (difference(pairs, lambda r, v=v: v(r, part)) for v in (score, nll))
            candidates.append(OneForAll(name, chosen, by_task, metric, likelihood, diverged))
    return candidates


@dataclass(frozen=True)
class Choice:
    """What `choose` took of one method.

    Attributes:
        chosen: see `tuned`.
        harmless: whether it hurts nowhere; if not, it is only the one that hurts least.
    """

    chosen: str
    harmless: bool


def choose(candidates: list[OneForAll], tolerance: float = 0.005) -> dict[str, Choice]:
    """Of each method, among the configurations that hurt nowhere, the one with the best mean NLL.

    To hurt is to lose more than ``tolerance`` of the metric on some task. If every configuration hurts, the one that
    hurts least in its worst task is taken, and said to be no more than that.
    """
    chosen = {}
    for name, members in group(candidates, lambda c: c.family).items():
        harmless = [c for c in members if c.worst >= -tolerance]
        best = min(harmless, key=lambda c: c.mean_nll) if harmless else max(members, key=lambda c: c.worst)
        chosen[name] = Choice(best.chosen, bool(harmless))
    return chosen
