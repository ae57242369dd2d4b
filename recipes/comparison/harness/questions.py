"""Questions to the exploratory runs that one table of chosen configurations does not answer, told in questions.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .confirmation import Duel, duels, pair_key, title
from .regimes import REGIMES
from .summary import PLAIN, Record


@dataclass(frozen=True)
class Question:
    """What is compared with what, and on which runs.

    Attributes:
        question: a sentence.
        regime: see `harness.regimes`.
        of: titles (`harness.confirmation.title`) of the configurations that are asked about.
        against: titles of what each is compared with.
        tasks: keys of the tasks; empty for all.
        settings: of the regime, where only runs with these values count.
        seeds: those that count; empty for all.
    """

    question: str
    regime: str
    of: Sequence[str]
    against: Sequence[str] = (PLAIN,)
    tasks: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    def concerns(self, record: Record) -> bool:
        """Whether a run is one of those that are asked."""
        settings = {**asdict(REGIMES[self.regime].Settings()), **record["settings"]}  # older runs lack newer ones
        return (
            record["regime"] == self.regime
            and "diverged" not in record
            and (not self.tasks or record["task"] in self.tasks)
            and (not self.seeds or record["seed"] in self.seeds)
            and all(settings[name] == value for name, value in self.settings.items())
        )


@dataclass(frozen=True)
class Answer:
    """One configuration against another.

    Attributes:
        of: title of the one.
        duel: with the other, over all tasks and seeds that both have.
        tasks: how many tasks.
    """

    of: str
    duel: Duel
    tasks: int


def read_questions(file: Path) -> list[Question]:
    """The questions of a YAML file, a list of `Question`'s attributes."""
    return [Question(**entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8"))]


def answers(question: Question, records: Sequence[Record]) -> list[Answer]:
    """Every pair that has runs in common, in the question's order.

    Raises:
        ValueError: a title that no run has, so a slip of the pen.
    """
    asked = [r for r in records if question.concerns(r)]
    known = {title(r) for r in asked}
    missing = {*question.of, *question.against} - known
    if missing:
        raise ValueError(f"{question.question!r} asks for {sorted(missing)}, of which there are no runs.")
    found = []
    for of in question.of:
        for rival in question.against:
            pair = [r for r in asked if title(r) in (of, rival)]
            found += [Answer(of, duel, _tasks_of_both(pair, of, rival)) for duel in duels(pair, of)]
    return found


def _tasks_of_both(records: Sequence[Record], of: str, rival: str) -> int:
    own, others = ({pair_key(r): r["task"] for r in records if title(r) == name} for name in (of, rival))
    return len({own[key] for key in own.keys() & others.keys()})
