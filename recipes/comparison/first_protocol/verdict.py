"""The rule of the confirmations: harmless, better than plain training, better than a rival."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .confirmation import Duel, by_task, duels, title
from .summary import PLAIN, Record

LEVEL = 0.01
LIMIT = -0.005  # of the metric: half a point


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one configuration.

    Attributes:
        champion: its `title`.
        plain: the duel with plain training.
        bounds: lower end of the one-sided 95 % interval of the difference from plain training, by task.
        tasks_with_one_seed: tasks with a single seed, which have none.
        better, worse: titles of the rivals from which the metric differs at ``LEVEL``, other forms of FAM left out.
    """

    champion: str
    plain: Duel
    bounds: dict[str, float]
    tasks_with_one_seed: list[str]
    better: list[str]
    worse: list[str]

    @property
    def worst(self) -> str | None:
        """The task with the lowest bound."""
        return min(self.bounds, key=lambda task: self.bounds[task], default=None)

    @property
    def harmless(self) -> bool:
        """No task that has a bound loses half a point by it; False where none has."""
        return bool(self.bounds) and all(low > LIMIT for low in self.bounds.values())

    @property
    def better_than_plain(self) -> bool:
        return self.harmless and self.plain.metric.mean > 0 and self.plain.metric.t < LEVEL


def judge(records: list[Record], champion: str) -> Verdict | None:
    """The verdict, or None where no run of plain training can be paired.

    Args:
        records: as for `duels`.
        champion: its `title`.
    """
    by_rival = {duel.rival: duel for duel in duels(records, champion)}
    plain = by_rival.pop(PLAIN, None)
    if plain is None:
        return None
    own = {title(r) for r in records if r["method"].startswith("fam")}
    differ = [d for name, d in by_rival.items() if name not in own and d.metric.t < LEVEL]
    lows = {task: against.low for task, against in by_task(records, champion, PLAIN).items()}
    return Verdict(
        champion,
        plain,
        {task: low for task, low in lows.items() if not math.isnan(low)},
        [task for task, low in lows.items() if math.isnan(low)],
        sorted(d.rival for d in differ if d.metric.mean > 0),
        sorted(d.rival for d in differ if d.metric.mean < 0),
    )
