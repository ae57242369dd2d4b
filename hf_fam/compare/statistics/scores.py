"""Scores of methods over seeds, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one method, in the order of the seeds.

    Attributes:
        values: of shape (seeds,), one score for each seed. Or (seeds, items), one score for each seed and test item,
            such as 1 for a correct and 0 for a wrong prediction. With repeated splits, of shape (repeats,). The same
            seed means the same split, the same initial weights and the same order for every method.

    Example:
        >>> Scores([0.81, 0.84, 0.82]).values.shape
        (3,)
    """

    values: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))


@dataclass(frozen=True)
class Differences:
    """Method minus baseline.

    Attributes:
        values: of shape (seeds,) or (seeds, items).
        spread: largest minus smallest score of both, at least ``abs(values).max()``.
        magnitude: largest absolute score of both, for what counts as rounding.
    """

    values: np.ndarray[Any, np.dtype[np.float64]]
    spread: float
    magnitude: float


def check_scores(scores: Mapping[str, Scores], baseline: str, repeated_splits: bool) -> None:
    """Raise a ValueError that names the method whose scores cannot be compared."""
    if baseline not in scores:
        raise ValueError(f"baseline={baseline!r} has no scores; there are scores of {', '.join(map(repr, scores))}.")
    shape = scores[baseline].values.shape
    for name, one in scores.items():
        values = one.values
        if values.ndim not in (1, 2) or values.size == 0:
            raise ValueError(
                f"The scores of {name!r} have shape {values.shape}; give one for each seed, (seeds,), or one for each "
                "seed and test item, (seeds, items)."
            )
        if repeated_splits and values.ndim == 2:
            raise ValueError(
                f"The scores of {name!r} have shape {values.shape}; repeated splits have one score for each repeat, "
                "because their test items differ."
            )
        if values.shape != shape:
            raise ValueError(
                f"The scores of {name!r} have shape {values.shape} and those of {baseline!r} {shape}; compare the same "
                "seeds and the same test items."
            )
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            place = ", ".join(f"{axis} {i}" for axis, i in zip(("seed", "item"), wrong[0], strict=False))
            raise ValueError(
                f"The scores of {name!r} have {values[tuple(wrong[0])]} at {place} (counted from 0); repeat this run, "
                "or leave its seed out of every method."
            )


def paired_differences(method: Scores, baseline: Scores) -> Differences:
    """Return method minus baseline, seed by seed and item by item."""
    both = np.stack([method.values, baseline.values])
    return Differences(method.values - baseline.values, float(np.ptp(both)), float(np.abs(both).max()))
