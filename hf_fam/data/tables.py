"""Tables in files, by the ending of the name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from ..inputs.text import first_line, quote
from .csv_files import read_csv
from .endings import TABLES
from .errors import DataError
from .json_files import read_json

if TYPE_CHECKING:
    from datasets import Dataset


def read_table(path: str | Path, encoding: str | None = None) -> Dataset:
    r"""Return the rows of a file, in memory.

    The name is the file's name, whatever characters it has: no pattern and no address.

    Args:
        path: a csv, tsv, json, jsonl, parquet or arrow file.
        encoding: encoding of a text file; UTF-8 by default.

    Raises:
        DataError: there is no such file, its format is unknown, it is broken, or it has no rows; the message does not
            contain the path.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a[1].csv")
        >>> _ = path.write_text("text;label\ngood;1\nbad;0\n")
        >>> read_table(path)[1]
        {'text': 'bad', 'label': 0}
    """
    from datasets import Dataset

    if os.path.isdir(path):
        raise DataError("this is a folder: give the name of a file.")
    if not os.path.isfile(path):
        raise DataError("there is no such file.")
    read = READERS.get(Path(path).suffix.lower())
    if read is None:
        raise DataError(
            f"files that end in {quote(Path(path).suffix)} cannot be read: give one of {', '.join(READERS)}."
        )
    try:
        if os.path.getsize(path) == 0:
            raise DataError("the file is empty.")
        table = read(Path(path), encoding)
        if table.num_columns == 0 or table.num_rows == 0:
            raise DataError("there are no rows.")
        _refuse_equal_names(table)
        return Dataset(_plain(table))
    except DataError:
        raise
    except Exception as error:  # of many kinds, of pyarrow, pandas and datasets
        raise DataError(f"the data cannot be read: {first_line(error)}") from error


def _read_parquet(path: Path, encoding: str | None) -> pa.Table:
    with path.open("rb") as file:
        table = pyarrow.parquet.ParquetFile(file).read()
    table.validate(full=True)  # damaged strings are found here, not in training
    return table


def _read_arrow(path: Path, encoding: str | None) -> pa.Table:
    with path.open("rb") as file:
        try:
            table = pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            table = pa.ipc.open_file(file).read_all()
    table.validate(full=True)
    return table


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with categories as their values, which `datasets` does not do."""
    columns = {
        name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def _refuse_equal_names(table: Any) -> None:
    twice = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are called {quote(twice)}: rename one.")


# Endings of tables, with the function that reads them.
READERS: dict[str, Callable[[Path, str | None], pa.Table]] = dict(
    zip(TABLES, (_read_parquet, read_csv, read_csv, read_json, read_json, _read_arrow), strict=True)
)
