"""Checks of the values in a column, over all rows as they were read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..inputs.numbers import as_number
from ..inputs.text import quote
from .columns import is_text
from .errors import DataError

# The label that losses leave out.
IGNORED = -100
# The square of a larger number is infinite in float32.
LARGEST_NUMBER = 1.8e19
_FILL = "fill it, remove the row, or add --drop_missing."
_WHOLE_OR_TRUTH = (pa.types.is_integer, pa.types.is_boolean)


def require_values(data: Any, column: str, split: str | None = None) -> None:
    """Refuse a column with an empty place; data without the column passes.

    Args:
        data: a `datasets.Dataset`.
        column: name of the column.
        split: name of the split, for the message.

    Raises:
        DataError: a value is missing; the message names the first row, from 1, and the number of such rows.
    """
    if column in data.column_names:
        _refuse_rows(_is_missing(data.data.column(column)), column, "is empty", _FILL, split)


def without_missing(data: Any, columns: Iterable[str]) -> tuple[Any, int]:
    """Return the rows that have a value in every one of some columns, and the number of the others.

    A list with an empty entry counts as empty. Columns that the data does not have are ignored.

    Args:
        data: a `datasets.Dataset`, all rows as they were read.
        columns: names of the columns.

    Raises:
        DataError: no row is left.
    """
    is_missing = np.zeros(len(data), dtype=bool)
    for column in {*columns} & {*data.column_names}:
        values = data.data.column(column).combine_chunks()
        is_missing |= np.asarray(_is_missing(values))
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            is_empty = np.asarray(_is_missing(pc.list_flatten(values)))
            is_missing[np.asarray(pc.list_parent_indices(values))[is_empty]] = True
    count = int(is_missing.sum())
    if count == len(data):
        raise DataError(f"every one of the {count} rows has an empty place, so --drop_missing leaves none.")
    return (data.select(np.flatnonzero(~is_missing)).flatten_indices(), count) if count else (data, 0)


def require_texts(data: Any, column: str, split: str | None = None) -> None:
    """Refuse a column that has empty places or other values than texts.

    Raises:
        DataError: names the column.
    """
    require_values(data, column, split)
    if not is_text(data.features[column]):
        raise DataError(
            f"column {quote(column)} contains {_type_of(data, column)}, not texts: name another one.", split
        )


def require_classes(data: Any, column: str, split: str | None = None, *, needs_values: bool = True) -> None:
    """Refuse a column that has empty places or values that are no classes.

    Args:
        data: a `datasets.Dataset`.
        column: name of the column.
        split: name of the split, for the message.
        needs_values: whether every row needs a label. Rows of test data need none.

    Raises:
        DataError: names the column, and the row if one is to blame.
    """
    if needs_values:
        require_values(data, column, split)
    values = data.data.column(column)
    _require_class_type(data, column, values.type, split)
    if pa.types.is_integer(values.type) and needs_values:
        no_label = [IGNORED, -1] if hasattr(data.features[column], "names") else [IGNORED]
        is_unlabeled = pc.is_in(values, pa.array(no_label, values.type))
        _refuse_rows(is_unlabeled, column, f"has {no_label[-1]}, which means no label,", "remove the row.", split)


def require_numbers(data: Any, column: str, split: str | None = None, *, needs_values: bool = True) -> None:
    """Refuse a column that has empty places or values that are no finite numbers.

    Args:
        data: a `datasets.Dataset`.
        column: name of the column.
        split: name of the split, for the message.
        needs_values: whether every row needs a label. Rows of test data need none.

    Raises:
        DataError: names the column, and the row if one is to blame.
    """
    if needs_values:
        require_values(data, column, split)
    values = data.data.column(column)
    if is_text(data.features[column]):
        values = pa.array([None if v is None else as_number(v) for v in values.to_pylist()], pa.float64())
    elif not any(test(values.type) for test in (*_WHOLE_OR_TRUTH, pa.types.is_floating, pa.types.is_null)):
        raise DataError(f"column {quote(column)} contains {_type_of(data, column)}: give numbers.", split)
    is_finite = pc.less(pc.abs(values.cast(pa.float64())), LARGEST_NUMBER)  # false for NaN
    is_wrong = pc.invert(pc.fill_null(is_finite, True))
    _refuse_rows(is_wrong, column, "has no finite number", f"give numbers below {LARGEST_NUMBER:g}.", split)


def require_tags(data: Any, words: str, tags: str, split: str | None = None) -> None:
    """Refuse rows that are not a list of words and a list of as many classes.

    Args:
        data: a `datasets.Dataset`.
        words: column of the words.
        tags: column of their classes.
        split: name of the split, for the message.

    Raises:
        DataError: names the column, and the row if one is to blame.
    """
    lists = {}
    for column in (words, tags):
        require_values(data, column, split)
        lists[column] = data.data.column(column).combine_chunks()
        if not (pa.types.is_list(lists[column].type) or pa.types.is_large_list(lists[column].type)):
            raise DataError(
                f"column {quote(column)} contains {_type_of(data, column)}: give a list in each row.", split
            )
        rows = pc.list_parent_indices(lists[column])
        is_missing = _is_missing(pc.list_flatten(lists[column]))
        _refuse_rows(is_missing, column, "has an empty entry", _FILL, split, rows)
    if not pa.types.is_string(lists[words].type.value_type) and not pa.types.is_large_string(
        lists[words].type.value_type
    ):
        raise DataError(
            f"column {quote(words)} contains lists of {lists[words].type.value_type}: give lists of words.", split
        )
    entries = pc.list_flatten(lists[tags])
    _require_class_type(data, tags, entries.type, split)
    if pa.types.is_integer(entries.type):
        rows = pc.list_parent_indices(lists[tags])
        is_ignored = pc.equal(entries, IGNORED)
        _refuse_rows(is_ignored, tags, f"has {IGNORED}, which means no label,", "give each word a class.", split, rows)
    lengths = {column: pc.list_value_length(values) for column, values in lists.items()}
    differs = pc.not_equal(lengths[words], lengths[tags])
    _refuse_rows(differs, tags, "has not one label for each word", "give as many labels as words.", split)


def _require_class_type(data: Any, column: str, kind: pa.DataType, split: str | None) -> None:
    if not any(
        test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null, *_WHOLE_OR_TRUTH)
    ):
        raise DataError(
            f"column {quote(column)} contains {_type_of(data, column)}, not classes: give names or whole numbers.",
            split,
        )


def _is_missing(values: Any) -> Any:
    """Return True for each value that is null or a blank string."""
    is_null = values.is_null()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return is_null
    return pc.or_(is_null, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), pa.scalar("", values.type)), True))


def _type_of(data: Any, column: str) -> str:
    kind = data.data.column(column).type
    return f"values of type {quote(str(kind)).strip(chr(39))}"


def _refuse_rows(is_wrong: Any, column: str, problem: str, remedy: str, split: str | None, rows: Any = None) -> None:
    """Raise an error if any value is wrong; ``rows`` has the row of each value of a flattened list."""
    count = pc.sum(is_wrong).as_py()
    if not count:
        return
    place = pc.index(is_wrong, True).as_py()
    row = (place if rows is None else rows[place].as_py()) + 1
    part = "" if split is None else f" of the {split} data"
    others = "" if count == 1 else f" ({count} such places in all)"
    raise DataError(f"column {quote(column)} {problem} in row {row}{part}{others}: {remedy}", split)
