"""Which rows a run trains on and which it is scored on; stratified, and a function of the split's number alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runs import FINAL, Run

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Splits of the training data.

    Args:
        labels: class of each row; None for rows without classes, which are split at random.
        count: number of rows.
        has_test: True if there is a test set; otherwise each split has a test part of its own.
        has_validation: True if there is a validation set; otherwise a part of the training rows is kept for tuning.
        test_fraction: part of the rows that a split tests on.
        validation_fraction: part of the training rows that a tuning run is scored on.
    """

    labels: Sequence[int] | None
    count: int
    has_test: bool
    has_validation: bool
    test_fraction: float = 0.25
    validation_fraction: float = 0.25

    def rows(self, run: Run) -> tuple[Rows, Rows | None]:
        """Return the rows to train on and those to be scored on; None for a set of its own.

        The rows of a tuning run never include a row of the split's test part.
        """
        train = np.arange(self.count)
        test: Rows | None = None
        if not self.has_test:
            train, test = self._divide(train, self.test_fraction, (0, run.split))
        if run.phase == FINAL:
            return train, test
        if self.has_validation:
            return train, None
        return self._divide(train, self.validation_fraction, (1, run.split, run.seed))

    @property
    def test_to_train_ratio(self) -> float | None:
        """Return the number of test rows by that of training rows in a split; None if there is a test set."""
        if self.has_test:
            return None
        train, test = self._divide(np.arange(self.count), self.test_fraction, (0, 0))
        return len(test) / len(train)

    def _divide(self, rows: Rows, fraction: float, seed: tuple[int, ...]) -> tuple[Rows, Rows]:
        random = np.random.default_rng(seed)
        groups = [rows] if self.labels is None else by_class(rows, np.asarray(self.labels))
        kept, taken = [], []
        for group in groups:
            group = random.permutation(group)
            size = min(max(round(fraction * len(group)), 1), len(group) - 1)
            taken.append(group[:size])
            kept.append(group[size:])
        return np.sort(np.concatenate(kept)), np.sort(np.concatenate(taken))

    def check(self, names: Mapping[int, str] | None = None) -> None:
        """Refuse data that cannot be split.

        Args:
            names: names of the classes, for the message.

        Raises:
            ValueError: there are fewer than two classes, or a class has too few rows.
        """
        least = 1 + (not self.has_test) + (not self.has_validation)
        if self.labels is None:
            if self.count < 2 * least:
                raise ValueError(f"there are {self.count} training rows, and the splits need at least {2 * least}.")
            return
        classes, counts = np.unique(np.asarray(self.labels), return_counts=True)
        if len(classes) < 2:
            raise ValueError(
                f"the training data has {len(classes)} class, and a comparison needs at least two: give data with more."
            )
        rare = [(names or {}).get(int(c), str(c)) for c, n in zip(classes, counts, strict=True) if n < least]
        if rare:
            which = ", ".join(rare[:5]) + (" ..." if len(rare) > 5 else "")
            parts = {1: "training", 2: "training, and validation or test", 3: "training, validation and test"}[least]
            kind = "class" if len(rare) == 1 else "classes"
            raise ValueError(
                f"{kind} {which}: fewer than {least} examples, and every class needs one for {parts}; add examples, or "
                f"leave the {kind} out."
            )


def by_class(rows: Rows, labels: NDArray[Any]) -> list[Rows]:
    """Return the rows of each class."""
    return [rows[labels[rows] == label] for label in np.unique(labels[rows])]


def class_labels(dataset: Any, names: Sequence[str] = ("labels", "label")) -> list[int] | None:
    """Return the class of each row, or None if the labels are no classes.

    Args:
        dataset: a ``datasets.Dataset``, a list of dicts, or another data set of such items.
        names: names that the label may have.
    """
    values = _column(dataset, names)
    if values is None or any(not _is_whole(value) for value in values):
        return None
    return [int(value) for value in values]


def _column(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        name = next((name for name in names if name in dataset.column_names), None)
        return None if name is None else list(dataset.with_format(None)[name])
    items = [dataset[k] for k in range(len(dataset))]
    name = next((name for name in names if items and isinstance(items[0], dict) and name in items[0]), None)
    return None if name is None else [item[name] for item in items]


def _is_whole(value: Any) -> bool:
    if hasattr(value, "dim"):  # a tensor
        return value.dim() == 0 and not value.is_floating_point()
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and math.isfinite(value)
