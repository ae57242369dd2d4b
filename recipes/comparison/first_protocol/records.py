"""The records of the first protocol: one compressed table for each kind of training, read and never written."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pyarrow import parquet

Record = dict[str, Any]

# Columns that hold JSON: their entries differ from run to run.
JSON_COLUMNS = ("settings", "configuration", "versions")
# What makes a run the same as another; the plan that asked for it does not.
KEY = ("task", "regime", "settings", "method", "configuration", "seed")
# What a kind of training did where a plan said nothing; settings that were added later are missing in older records.
DEFAULTS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("defaults.json").read_text(encoding="utf-8"))


def read_results(folder: Path, plans: Collection[str] = ()) -> list[Record]:
    """Return one record for each run, with the name of its plan as ``"plan"``; where a run was made twice, the first.

    Args:
        folder: the tables.
        plans: names of the plans whose records are read; empty for all.
    """
    records = [
        _from_row(row) for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()
    ]
    runs: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record["plan"]):
        if not plans or record["plan"] in plans:
            runs.setdefault(json.dumps([record[name] for name in KEY], sort_keys=True), record)
    return list(runs.values())


def _from_row(row: Record) -> Record:
    return {k: json.loads(v) if k in JSON_COLUMNS else v for k, v in row.items() if v is not None}
