"""What is printed about the data before a training: files, columns, rows, and rows of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.splits import TEST, TRAIN, VALIDATION
from ...inputs.text import printable, quote
from .arguments import DataArguments

# With more classes, only their number is printed.
_MOST_CLASSES = 8
_VERBS = {TRAIN: "to train", VALIDATION: "to validate", TEST: "to predict"}


@dataclass(frozen=True)
class DataSummary:
    """The data of a run.

    Attributes:
        source: the arguments that name the data, with their values.
        columns: the columns in use, by what they contain.
        guesses: the flags that choose other columns, where the columns were guessed.
        rows: number of rows by split.
        classes: number of training rows by class; None for data without classes.
        note: how the validation data was made.
        dropped: number of rows that were left out.
    """

    source: str
    columns: Mapping[str, str]
    guesses: Sequence[str]
    rows: Mapping[str, int]
    classes: Mapping[str, int] | None
    note: str = ""
    dropped: int = 0

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the summary, with their headings."""
        columns = ", ".join(f"{name} in {quote(column)}" for name, column in self.columns.items())
        guesses = f" (guessed; flags: {', '.join('--' + g for g in self.guesses)})" if self.guesses else ""
        rows = ", ".join(f"{count:,} {_VERBS.get(name, name)}" for name, count in self.rows.items())
        left_out = f"; {self.dropped:,} with an empty place left out" if self.dropped else ""
        found = [("data", self.source), ("columns", columns + guesses), ("rows", rows + self.note + left_out)]
        if self.classes is not None:
            found.append(("classes", describe_classes(self.classes)))
        return found


def describe_classes(counts: Mapping[str, int]) -> str:
    """Return the number of rows of each class, or of the smallest and the largest of many.

    Examples:
        >>> describe_classes({"no": 20, "yes": 12})
        'no 20, yes 12'
    """
    if len(counts) <= _MOST_CLASSES:
        return ", ".join(f"{printable(name)} {count:,}" for name, count in counts.items())
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[least] == counts[most]:
        return f"{len(counts)} classes of {counts[most]:,} rows"
    return (
        f"{len(counts)} classes of {counts[least]:,} ({printable(least)}) to {counts[most]:,} ({printable(most)}) rows"
    )


def summarize(
    data: DataArguments,
    splits: Mapping[str, Any],
    columns: Mapping[str, str],
    guesses: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    *,
    is_stratified: bool = True,
) -> DataSummary:
    """Return the summary of a run's data.

    Args:
        data: the names of the data.
        splits: the rows in use.
        columns: the columns in use, by what they contain.
        guesses: the flags that choose other columns, where the columns were guessed.
        labels: class of each training row; None for data without classes.
        is_stratified: whether validation data that was split off has the same share of every class.
    """
    is_own = data.has_validation and data.was_split
    note = f" (split off{', the same share of every class' if is_stratified else ''})" if is_own else ""
    rows = {name: len(split) for name, split in splits.items() if name != VALIDATION or data.has_validation}
    counts = None if labels is None else dict(sorted(Counter(labels).items()))
    sources = dict.fromkeys(data.source_of(name) for name in rows)
    return DataSummary(", ".join(sources), columns, guesses, rows, counts, note, sum(data.dropped_rows.values()))
