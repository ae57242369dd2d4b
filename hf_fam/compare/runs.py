"""One run of a comparison: what it is, and the grids of settings that are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..frozen.content_hash import content_hash
from ..methods import Method
from ..methods.base import round_to

TUNING, FINAL = "tuning", "final"

# Ratio of neighboring learning rates, if a method has another strength beside it.
RATE_STEP = 10**0.5
# With fewer settings, one learning rate would be all that a method with a strength tries.
SMALLEST_GRID_OF_STRENGTHS = 4
# Seeds of tuning runs; the final runs have fresh ones.
FIRST_TUNING_SEED = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What is tuned of a method.

    Attributes:
        learning_rate: the Trainer's; None for a method without gradient steps.
        strength: the method's strength; None for a method without one.
    """

    learning_rate: float | None
    strength: float | None


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        phase: ``"tuning"``, scored on validation data, or ``"final"``, scored on test data.
        method: name of the method.
        settings: learning rate and strength.
        seed: sets the initial weights, the order of the data and every random number of the training.
        split: number of the split into training and test data; 0 if there is a test set.
    """

    phase: str
    method: str
    settings: Settings
    seed: int
    split: int

    def key(self, fingerprint: str) -> str:
        """Return the name under which the run is kept.

        Args:
            fingerprint: of everything else that the outcome depends on.
        """
        return content_hash(fingerprint, asdict(self))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Run:
        """Return the run that a record describes.

        Examples:
            >>> run = Run(FINAL, "sam", Settings(1e-3, 0.05), 3, 0)
            >>> Run.of(run.describe()) == run
            True
        """
        settings = Settings(record["learning_rate"], record["strength"])
        return cls(record["phase"], record["method"], settings, record["seed"], record["split"])

    def describe(self) -> dict[str, Any]:
        """Return the entries of the run in its record."""
        entries = asdict(self)
        return {**entries.pop("settings"), **entries}


def grid(method: Method, learning_rate: float, size: int) -> list[Settings]:
    """Return the settings of a method that are tried; every method that can be tuned has equally many.

    From four settings on, a method with learning rate and strength has half as many learning rates, each with two
    strengths. One with a learning rate alone has more of them in the same range. With fewer settings, all methods try
    the same learning rates, each at its own strength.

    Args:
        method: with its strength, see `Method.resolve`.
        learning_rate: the middle of the grid.
        size: number of settings, 1 or an even number. With 1 there is no choice.

    Examples:
        >>> from hf_fam.methods import method_called
        >>> [s.learning_rate for s in grid(method_called("plain")(), 1e-3, 4)]
        [0.001, 0.00147, 0.00215, 0.00316]
        >>> [(s.learning_rate, s.strength) for s in grid(method_called("sam")(0.05), 1e-3, 4)]
        [(0.001, 0.05), (0.001, 0.1), (0.00316, 0.05), (0.00316, 0.1)]
    """
    if not method.has_learning_rate and method.field is None:
        return [Settings(None, None)]
    if not method.has_learning_rate:
        return [Settings(None, strength) for strength in method.strengths(size)]
    count = max(size // 2, 1)
    low = learning_rate * RATE_STEP ** -((count - 1) // 2)
    if method.field is not None and size >= SMALLEST_GRID_OF_STRENGTHS:
        rates = [round_to(low * RATE_STEP**k) for k in range(count)]
        return [Settings(rate, strength) for rate in rates for strength in method.strengths(2)]
    step = RATE_STEP ** (max(count - 1, 0.5) / max(size - 1, 1))
    strength = None if method.field is None else method.value
    return [Settings(round_to(low * step**k), strength) for k in range(size)]


def edges(chosen: Sequence[Settings], tried: Sequence[Settings]) -> list[str]:
    """Return which of learning rate and strength was always chosen at an edge of its grid.

    A grid of one or two values has no inside, so it does not count.

    Examples:
        >>> tried = [Settings(rate, None) for rate in (1e-3, 1e-2, 1e-1)]
        >>> edges([Settings(1e-1, None)], tried), edges([Settings(1e-2, None)], tried)
        (['learning rate'], [])
    """
    found = []
    for field in ("learning_rate", "strength"):
        values = sorted({value for s in tried if (value := getattr(s, field)) is not None})
        ends = (values[0], values[-1]) if len(values) > 2 else ()
        if chosen and all(getattr(c, field) in ends for c in chosen):
            found.append(field.replace("_", " "))
    return found
