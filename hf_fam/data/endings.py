"""Endings of the names of tables."""

from __future__ import annotations

TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".arrow")
