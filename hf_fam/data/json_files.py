"""Tables as JSON: one object a line, a list of objects, or an object of columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..inputs.text import first_line, quote
from .errors import DataError
from .text_files import read_text

# Objects that are converted at a time; Python's objects take more memory than the table.
_BATCH = 10_000


def read_json(path: Path, encoding: str | None = None) -> pa.Table:
    """Return the table of a JSON file.

    Args:
        path: the file: a list of objects, an object of lists of one length, or one object a line.
        encoding: its encoding; UTF-8 by default.

    Raises:
        DataError: the file is broken, or a column mixes types; the message names the row.
    """
    text = read_text(path, encoding).decode("utf-8")
    rows = (
        [*_rows_of_lines(text.splitlines())] if path.suffix.lower() == ".jsonl" and not _is_list(text) else _rows(text)
    )
    tables = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        names = dict.fromkeys(name for row in batch for name in row)
        tables.append(pa.table({name: _column(name, [row.get(name) for row in batch], start) for name in names}))
    if not tables or not any(table.num_columns for table in tables):
        raise DataError("there are no rows." if not tables else "the objects have no keys.")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"a column mixes types: {first_line(error)}.") from error


def _is_list(text: str) -> bool:
    return text.lstrip().startswith("[")


def _rows(text: str) -> Sequence[dict[str, Any]]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError("the JSON is nested too deep: give objects with texts and labels.") from None
    except ValueError as error:
        if "Extra data" not in str(error):
            raise DataError(f"the JSON is broken: {first_line(error)}.") from None
        return [*_rows_of_lines(text.splitlines())]
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    rows = [value] if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f"the file contains {quote(value)}: give a list of objects, or one object a line.")
    for number, row in enumerate(rows, 1):
        _require_object(row, f"row {number}")
    return rows


def _rows_of_lines(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            raise DataError(f"line {number} is nested too deep: give objects with texts and labels.") from None
        except ValueError as error:
            raise DataError(f"line {number} is broken JSON: {first_line(error)}.") from None
        _require_object(row, f"line {number}")
        yield row


def _require_object(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f'{where} is {quote(row)}: give an object, such as {{"text": "...", "label": "..."}}.')


def _column(name: str, values: list[Any], start: int) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError) as error:
        row = start + _odd_row(values) + 1
        raise DataError(f"column {quote(name)}, row {row}: {_problem(error)}") from error


def _problem(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return "a whole number needs more than 64 bits: give it as text, or with a decimal point."
    if isinstance(error, UnicodeError):
        return "the text has half a surrogate pair, which no UTF-8 can hold: correct it."
    return f"its type differs from that of earlier rows ({first_line(error)}): give values of one type."


def _odd_row(values: list[Any]) -> int:
    """Return the first place whose value cannot stand in one column with those before it."""
    low, high = 0, len(values)  # the first `low` values have one type, the first `high` have not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except Exception:  # of the same kinds as in the caller
            high = middle
    return high - 1
