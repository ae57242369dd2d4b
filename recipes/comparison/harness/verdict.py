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
        better, worse: titles of the rivals from which the metric differs at ``LEVEL``, other forms of FAM left out.
    """

    champion: str
    plain: Duel
    bounds: dict[str, float]
    better: list[str]
    worse: list[str]

    @property
    def worst(self) -> str:
        """The task with the lowest bound; one with a single seed has none."""
        return min(self.bounds, key=lambda task: (not math.isnan(self.bounds[task]), self.bounds[task]))

    @property
    def harmless(self) -> bool:
        """No task loses half a point, by its bound; False where a bound is missing."""
        return all(low > LIMIT for low in self.bounds.values())

    @property
    def better_than_plain(self) -> bool:
        return self.harmless and self.plain.metric.mean > 0 and self.plain.metric.t < LEVEL


def judge(records: list[Record], champion: str) -> Verdict | None:
    """The verdict, or None where no run of plain training can be paired.

    Args:
        records: as for `duels`.
        champion: its `title`.
    """
    found = {duel.rival: duel for duel in duels(records, champion)}
    plain = found.pop(PLAIN, None)
    if plain is None:
        return None
    own = {title(r) for r in records if r["method"].startswith("fam")}
    differ = [d for name, d in found.items() if name not in own and d.metric.t < LEVEL]
    return Verdict(
        champion,
        plain,
        {task: found.low for task, found in by_task(records, champion, PLAIN).items()},
        sorted(d.rival for d in differ if d.metric.mean > 0),
        sorted(d.rival for d in differ if d.metric.mean < 0),
    )
