"""Questions of questions.yaml: what the tables of chosen configurations do not answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .confirmation import Duel, by_task, duels, pair_key, title
from .paired import Difference
from .records import DEFAULTS
from .summary import PLAIN, Record, at_its_settings


@dataclass(frozen=True)
class Question:
    """Which configurations are compared, and on which runs.

    Attributes:
        question: a sentence.
        regime: a key of `DEFAULTS`.
        of: titles (`first_protocol.confirmation.title`) of the configurations in question.
        against: titles of the configurations that each is compared with.
        tasks: keys of the tasks; empty for all.
        settings: of the regime, where only runs with these values count.
        seeds: those that count; empty for all.
        rates: by title, then task: the learning rate at which a configuration's runs count, which need not be that of
            the other one; ``tuned`` is plain training at a rate of its own.
    """

    question: str
    regime: str
    of: Sequence[str]
    against: Sequence[str] = (PLAIN,)
    tasks: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    rates: dict[str, dict[str, float]] = field(default_factory=dict)

    def concerns(self, record: Record) -> bool:
        """Return whether a run belongs to the question."""
        settings = {**DEFAULTS[self.regime], **record["settings"]}  # older runs lack newer ones
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
        tasks: difference of the metric on each.
    """

    of: str
    duel: Duel
    tasks: dict[str, Difference]

    @property
    def worst(self) -> str | None:
        """The task where the lower end of the one-sided 95 % interval is lowest; None if none has two seeds."""
        lows = {task: against.low for task, against in self.tasks.items() if against.pairs > 1}
        return min(lows, key=lambda task: lows[task], default=None)


def read_questions(file: Path) -> list[Question]:
    """The questions of a YAML file, a list of `Question`'s attributes."""
    return [Question(**entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8"))]


def answers(question: Question, records: Sequence[Record]) -> list[Answer]:
    """Every pair that has runs in common, in the question's order.

    Raises:
        ValueError: a title that no run has, so a slip of the pen.
    """
    runs = [r for r in records if question.concerns(r)]
    if question.rates:
        runs = _at_their_rates(runs, question.rates)
    known = {title(r) for r in runs}
    missing = {*question.of, *question.against} - known
    if missing:
        raise ValueError(f"{question.question!r} asks for {sorted(missing)}, of which there are no runs.")
    results = []
    for of in question.of:
        for rival in question.against:
            pair = [r for r in runs if title(r) in (of, rival)]
            results += [Answer(of, duel, by_task(pair, of, rival)) for duel in duels(pair, of)]
    return results


def _at_their_rates(records: Sequence[Record], rates: dict[str, dict[str, float]]) -> list[Record]:
    """The runs at the rate that is right for their title and task, without it, so that they can be paired."""
    runs = {}
    for record in records:
        other = at_its_settings(record)
        settings = dict(other["settings"])
        rate = settings.pop("learning_rate")
        other = {**other, "settings": settings}
        if rates.get(title(other), {}).get(record["task"]) == rate:
            runs[title(other), pair_key(other)] = other
    return list(runs.values())
