"""Tables as text: comma-separated values, or values with another delimiter."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..inputs.text import quote
from .errors import DataError
from .text_files import read_text

DELIMITERS = (",", "\t", ";", "|")
# Signs that names of columns have, too.
_IN_NAMES = "_-.?! \"'()[]/\r\n\\"
_SNIFFED_ROWS = 20
# Words for a missing value, in columns whose other values are numbers.
_MISSING = ("NA", "N/A", "n/a", "<NA>", "#N/A", "null", "NULL", "None")
_WHOLE = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"(?i)^[+-]?([0-9]+[.]?[0-9]*(e[+-]?[0-9]+)?|[.][0-9]+(e[+-]?[0-9]+)?|inf|infinity|nan)$"
_DIGITS = r"^[+-]?[0-9]+$"
_LARGEST_BLOCK = 1 << 30


def read_csv(path: Path, encoding: str | None = None) -> pa.Table:
    """Return the table of a file with delimited values.

    The first line has the names of the columns. The delimiter is the one of ``, ; |`` and tab that cuts the first rows
    into the most columns, equally many in each. If none does, it may be any other sign.
    A column whose values are all numbers has a numeric type. An empty value is missing.

    Args:
        path: the file.
        encoding: its encoding; UTF-8 by default.

    Raises:
        DataError: the file is broken; the message names the row.
    """
    content = read_text(path, encoding)
    delimiter, names = _header(content)
    if content.count(b'"') % 2:
        _refuse_open_quote(content, delimiter)
    ragged: list[Any] = []

    def keep_ragged(row: Any) -> str:
        ragged.append(row)
        return "skip"

    table = pyarrow.csv.read_csv(
        io.BytesIO(content),
        pyarrow.csv.ReadOptions(
            use_threads=False,  # with threads, rows have no numbers
            block_size=min(len(content) + 1, _LARGEST_BLOCK),
            column_names=names,
            skip_rows_after_names=1,
        ),
        pyarrow.csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            invalid_row_handler=keep_ragged,
        ),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )
    if ragged:
        row = ragged[0]
        where = "" if row.number is None else f"row {row.number - 1} "
        values = "value" if row.actual_columns == 1 else "values"
        raise DataError(
            f"{where}has {row.actual_columns} {values} and the header {row.expected_columns} ({quote(row.text)}): give "
            "one value for each column, in quotes if it contains the delimiter."
        )
    return pa.table({name: _typed(table.column(name)) for name in names})


def _header(content: bytes) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns."""
    start = content[: 1 << 20].decode("utf-8", errors="ignore")
    delimiter = find_delimiter(start)
    header = next(iter(_first_rows(start, delimiter, 1)), [])
    names = [name.strip() or f"unnamed_{k}" for k, name in enumerate(header)]
    if not any(name.strip() for name in header):
        raise DataError("the first line has no names of columns.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are called {quote(twice)}: rename one.")
    return delimiter, names


def find_delimiter(text: str) -> str:
    r"""Return the sign between the values of a table.

    Args:
        text: the beginning of the table.

    Examples:
        >>> find_delimiter("text;label\na, b;1\n"), find_delimiter("text~label\na, b~1\n")
        (';', '~')
    """
    usual = max(DELIMITERS, key=lambda sign: _fitness(text, sign))
    if _fitness(text, usual)[0]:
        return usual
    line = text.lstrip().partition("\n")[0]
    others = [sign for sign in dict.fromkeys(line) if sign.isascii() and not sign.isalnum() and sign not in _IN_NAMES]
    fitting = [sign for sign in others if _fitness(text, sign)[:2] == (True, 1.0) and _has_a_table(text, sign)]
    return max(fitting, key=lambda sign: _fitness(text, sign)) if fitting else usual


def _fitness(text: str, delimiter: str) -> tuple[bool, float, int]:
    """Return whether a delimiter makes columns, the share of rows with as many as the header, and how many."""
    rows = _first_rows(text, delimiter, _SNIFFED_ROWS)
    count = len(rows[0]) if rows else 0
    return count > 1, sum(len(row) == count for row in rows) / max(1, len(rows)), count


def _has_a_table(text: str, delimiter: str) -> bool:
    """Return True if there are rows behind the header, and the header names every column."""
    rows = _first_rows(text, delimiter, 2)
    return len(rows) == 2 and all(name.strip() for name in rows[0])


def _first_rows(text: str, delimiter: str, count: int) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=None), delimiter=delimiter):
            if row:
                rows.append(row)
            if len(rows) == count:
                break
    except csv.Error:  # a field that is longer than the module's limit
        return rows
    return rows


def _refuse_open_quote(content: bytes, delimiter: str) -> None:
    """Refuse a quoted value that never ends, which pyarrow takes for a value."""
    try:
        pandas.read_csv(io.BytesIO(content), sep=delimiter, dtype=str, engine="c", on_bad_lines="skip", index_col=False)
    except pandas.errors.ParserError as error:
        if "EOF inside string" in str(error):
            row = str(error).rpartition(" ")[2]
            raise DataError(
                f"row {row}: a value that begins with a quote never ends: close it, or remove it."
            ) from error


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of strings as whole numbers or numbers, if all values are."""
    values = pc.if_else(pc.is_in(column, pa.array(_MISSING)), pa.scalar(None, pa.string()), column)
    if values.null_count == len(values):
        return column
    if _all_match(values, _WHOLE):
        return values.cast(pa.int64())
    # Whole numbers that int64 cannot hold, or with leading zeros, would change as numbers.
    is_numeric = (
        _all_match(values, _NUMBER)
        and not pc.any(
            pc.and_(pc.match_substring_regex(values, _DIGITS), pc.invert(pc.match_substring_regex(values, _WHOLE)))
        ).as_py()
    )
    return values.cast(pa.float64()) if is_numeric else column


def _all_match(values: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())
