"""Results in JSON lines: appended one run at a time, read by the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .plan import key


def read_results(files: Iterable[Path], key: Callable[[dict[str, Any]], Any] = key) -> list[dict[str, Any]]:
    """All records, one a run, with the name of the file as ``"plan"``.

    A line that an interruption cut short is passed over, and its run is done again.

    Args:
        files: JSON lines.
        key: what makes a record that of the same run as another.
    """
    records: dict[Any, dict[str, Any]] = {}
    for file in sorted(files):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                records.setdefault(key(record), {**record, "plan": file.stem})
            except (json.JSONDecodeError, KeyError):
                print(f"{file.name}:{number}: not a record, passed over", file=sys.stderr)
    return list(records.values())


def append_result(file: Path, record: dict[str, Any]) -> None:
    """Write one line, on disk before this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", encoding="utf-8") as out:
        cut_short = out.tell() > 0 and not file.read_bytes().endswith(b"\n")
        out.write(("\n" if cut_short else "") + json.dumps(record, allow_nan=False) + "\n")
