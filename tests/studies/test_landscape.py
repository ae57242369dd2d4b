"""The landscape recipes run from end to end, small, and write what docs/experiments.md includes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "recipes" / "landscape"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"landscape_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_from_runs_to_tables(tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    small = ["--teachers", "1", "--runs", "2", "--steps", "50"]
    script("minima").main(["--output", str(results), "--figures", str(docs / "img"), *small])
    script("widening").main(["--seeds", "2", "--steps", "3", "--output", str(results / "widening.json")])
    script("report").main(["--results", str(results), "--docs", str(docs)])
    fixed = (docs / "generated/landscape/fixed.md").read_text()
    assert "u = -0.414081, v = -1.269334, L = 0.513460, B = 0.951303" in fixed
    assert "| 0.25 | minimum |" in fixed and "| 1.5 | saddle |" in fixed
    assert (docs / "generated/landscape/teachers.md").read_text().count("\n") == 6
    assert (docs / "generated/landscape/widening.md").read_text().count("| ratio 1.5 |") == 2
    assert {path.name for path in (docs / "img").iterdir()} == {"escape_path.png", "infimum_path.png", "widening.png"}
    for record in json.loads((results / "widening.json").read_text())["records"]:
        assert record["loss_widened"] == pytest.approx(record["loss_before"], rel=1e-4)
        assert (record["loss_before"] == record["loss_widened"]) or record["arm"] != "no widening"


def test_what_is_in_the_docs_comes_from_the_results(tmp_path: Path) -> None:
    script("report").main(["--docs", str(tmp_path)])
    published = FOLDER.parents[1] / "docs" / "generated" / "landscape"
    for made in (tmp_path / "generated" / "landscape").iterdir():
        assert made.read_text() == (published / made.name).read_text(), f"run recipes/landscape/report.py: {made.name}"
