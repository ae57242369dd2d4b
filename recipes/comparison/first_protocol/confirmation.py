"""What a confirmation decides: one configuration against every other, pair by pair over tasks and seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .paired import Difference
from .summary import Record, difference, family, group, nll, score, tuned


@dataclass(frozen=True)
class Duel:
    """A configuration against a rival.

    Attributes:
        rival: see `title`.
        metric: difference of the tasks' metrics over all tasks and seeds that both have.
        nll: the same in negative log-likelihood.
        nll_scaled: the same after temperature scaling.
    """

    rival: str
    metric: Difference
    nll: Difference
    nll_scaled: Difference


def title(record: Record) -> str:
    """Method and configuration."""
    return " ".join(filter(None, [family(record), tuned(record)]))


def pair_key(record: Record) -> str:
    """What two runs have in common that are compared; tasks may have settings of their own."""
    return json.dumps([record["task"], record["settings"], record["seed"]], sort_keys=True)


def duels(records: list[Record], champion: str) -> list[Duel]:
    """One configuration against all others.

    Args:
        records: of one regime, none of which diverged.
        champion: its `title`.
    """
    runs = group(records, title)
    own = {pair_key(r): r for r in runs.pop(champion)}
    results = []
    for rival, members in runs.items():
        pairs = [(own[pair_key(r)], r) for r in members if pair_key(r) in own]
        if pairs:
            results.append(Duel(rival, *(difference(pairs, value) for value in (score, nll, nll_scaled))))
    return results


def by_task(records: list[Record], champion: str, rival: str) -> dict[str, Difference]:
    """Difference of the metric on every task, with its lower bound."""
    differences = {}
    for task, members in sorted(group(records, lambda r: r["task"]).items()):
        runs = {name: {pair_key(r): r for r in some} for name, some in group(members, title).items()}
        own, other = runs.get(champion, {}), runs.get(rival, {})
        pairs = [(own[key], other[key]) for key in own if key in other]
        if pairs:
            differences[task] = difference(pairs, score)
    return differences


def nll_scaled(record: Record) -> float:
    return float(record["test"]["nll_scaled"])
