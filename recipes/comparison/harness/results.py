"""Results: one compressed table a regime, and a journal of JSON lines for each plan that is under way.

A run that is finished is appended to ``<plan>.jsonl``. `merge_journals` moves the journals into ``<regime>.parquet``. A
table is replaced as a whole, and a journal is deleted only afterwards: a process that is killed loses no finished run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from .plan import key

Record = dict[str, Any]

# Columns that hold JSON: their entries differ from run to run.
JSON_COLUMNS = ("settings", "configuration", "versions")


def read_results(folder: Path, plans: Collection[str] = ()) -> list[Record]:
    """Return one record a run, with the name of its plan as ``"plan"``; where a run was made twice, the first.

    Args:
        folder: tables and journals.
        plans: names of the plans whose records are read; empty for all.
    """
    records: dict[str, Record] = {}
    for record in read_records(folder):
        if not plans or record["plan"] in plans:
            records.setdefault(key(record), record)
    return list(records.values())


def read_records(folder: Path) -> list[Record]:
    """Return every record of the tables and journals, by plan and then in the order of their making."""
    # Journals first: another process may merge one meanwhile, and its records are then in the table that is read later.
    journals = [record for file in sorted(folder.glob("*.jsonl")) for record in _read_journal(file)]
    tables = [record for file in sorted(folder.glob("*.parquet")) for record in read_table(file)]
    return sorted([*tables, *journals], key=lambda record: record["plan"])


def append_result(folder: Path, plan: str, record: Record) -> None:
    """Append the record of a finished run to the journal of its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        append_line(folder / f"{plan}.jsonl", record)


def merge_journals(folder: Path) -> None:
    """Move the records of all journals into the tables of their regimes.

    Raises:
        ValueError: a table would not hold the records unchanged; journals and tables stay as they were.
    """
    if not folder.exists():
        return
    with _locked(folder):
        journals = sorted(folder.glob("*.jsonl"))
        by_regime: dict[str, list[Record]] = {}
        for record in (record for file in journals for record in _read_journal(file)):
            by_regime.setdefault(record["regime"], []).append(record)
        for regime, records in by_regime.items():
            file = folder / f"{regime}.parquet"
            present = read_table(file) if file.exists() else []
            # A process that was killed before it deleted the journal has put these into the table already.
            known = {json.dumps(record, sort_keys=True) for record in present}
            write_table(file, [*present, *(r for r in records if json.dumps(r, sort_keys=True) not in known)])
        for file in journals:
            file.unlink()


def read_table(file: Path) -> list[Record]:
    """Return the records of one table."""
    return [_from_row(row) for row in parquet.read_table(file).to_pylist()]


def write_table(file: Path, records: Sequence[Record]) -> None:
    """Write a table in one step: the file is the old one or the new one at any moment.

    Raises:
        ValueError: the table would not hold the records unchanged.
    """
    records = sorted(records, key=lambda record: record["plan"])
    rows = [{k: json.dumps(v) if k in JSON_COLUMNS else v for k, v in record.items()} for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    temporary = file.with_name(f"{file.name}.tmp")
    parquet.write_table(table, temporary, compression="zstd", compression_level=19)
    if read_table(temporary) != records:
        temporary.unlink()
        raise ValueError(f"{file.name} would not hold its {len(records)} records unchanged; nothing was written.")
    with open(temporary, "rb+") as written:
        os.fsync(written.fileno())
    os.replace(temporary, file)


def read_lines(file: Path) -> Iterator[Record]:
    """Yield the records of a file of JSON lines; a line that an interruption cut short is passed over."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            print(f"{file.name}:{number}: not a record, passed over", file=sys.stderr)


def append_line(file: Path, record: Record) -> None:
    """Append one JSON line, after closing a line that an interruption cut short."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", encoding="utf-8") as out:
        cut_short = out.tell() > 0 and not file.read_bytes().endswith(b"\n")
        out.write(("\n" if cut_short else "") + json.dumps(record, allow_nan=False) + "\n")


def _read_journal(file: Path) -> Iterator[Record]:
    with contextlib.suppress(FileNotFoundError):  # merged by another process meanwhile
        for record in read_lines(file):
            yield {"plan": file.stem, **record}


def _from_row(row: Record) -> Record:
    return {k: json.loads(v) if k in JSON_COLUMNS else v for k, v in row.items() if v is not None}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder."""
    import fcntl  # not on Windows, where results can be read and not written

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
