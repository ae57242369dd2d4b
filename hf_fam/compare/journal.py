"""The file of finished runs: one line of JSON for each, appended when it ends."""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runs import Run

RUNS = "runs.jsonl"

Record = dict[str, Any]


class Journal:
    """Finished runs by their keys.

    A line that an interruption cut short is left out, and the run is made again.

    Args:
        folder: the folder of the comparison; None to keep nothing.
        is_written: False in the processes that only read.
    """

    def __init__(self, folder: Path | None, is_written: bool = True) -> None:
        self._is_written = is_written and folder is not None
        self._file = None if folder is None else folder / RUNS
        self._records: dict[str, Record] = {}
        if self._file is not None and self._file.is_file():
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                record = _parsed(line)
                if record is not None:
                    self._records.setdefault(record["key"], record)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> Record:
        return self._records[key]

    def __len__(self) -> int:
        return len(self._records)

    def count(self, fingerprint: str) -> int:
        """Return the number of finished runs of a comparison.

        Args:
            fingerprint: of what all its runs depend on.
        """
        return sum(Run.of(record).key(fingerprint) == key for key, record in self._records.items())

    def append(self, record: Record) -> None:
        """Keep the record of a finished run, on disk before this returns.

        Raises:
            ValueError: the file cannot be written.
        """
        self._records[record["key"]] = record
        if self._file is None or not self._is_written:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(record, allow_nan=False)
            with open(self._file, "ab+") as out:
                end = out.seek(0, os.SEEK_END)
                cut_short = False
                if end:
                    out.seek(end - 1)
                    cut_short = out.read(1) != b"\n"
                out.write((b"\n" if cut_short else b"") + line.encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise ValueError(
                f"'{self._file}' cannot be written ({error.strerror}): make room, then start the same command again. "
                "Finished runs are kept."
            ) from error


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "key" in record else None


def pack(values: NDArray[np.float64]) -> str:
    """Return numbers as a short text.

    Examples:
        >>> unpack(pack(np.array([1.0, 0.5]))).tolist()
        [1.0, 0.5]
    """
    return base64.b64encode(zlib.compress(np.asarray(values, dtype="<f8").tobytes(), 9)).decode("ascii")


def unpack(text: str) -> NDArray[np.float64]:
    """Return the numbers of `pack`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<f8").astype(np.float64)
