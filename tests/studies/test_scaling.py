"""The scripts behind docs/large-vocabularies.md run, resume, and compute what the page says."""

from __future__ import annotations

import csv
import doctest
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "benchmarks"


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as for a script
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_every_axis_is_measured_once_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scaling = load("scaling")
    given = ["--quick", "--no-memory", "--axes", "^(batch|depth|probes|head)$", "--output", str(tmp_path)]
    scaling.main(given)
    path = tmp_path / "scaling.csv"
    before = path.read_bytes()
    scaling.main(given)
    assert path.read_bytes() == before, "what is measured is not measured again"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == scaling.COLUMNS
    assert {r["axis"] for r in rows} == {"batch", "depth", "probes", "head"}
    assert {r["method"] for r in rows if r["axis"] == "batch"} == {"closed_form", "row_probes"}
    assert all(float(r["time_ratio"]) > 0 for r in rows)
    names = {path.name for path in load("plot_scaling").main(tmp_path)}
    assert names >= {"scaling-batch.png", "scaling-depth.png", "scaling-head.png"}


def test_memory_of_a_point() -> None:
    scaling = load("scaling")
    point = next(p for p in scaling.points(True, None) if p.axis == "head")
    found = scaling.measure_memory(point, "closed_form", scaling.parse(["--quick"]))
    assert found["torch_mb"] > 0


def test_the_extrapolation_of_the_documentation() -> None:
    extrapolate = load("extrapolate")
    assert doctest.testmod(extrapolate, optionflags=doctest.ELLIPSIS).failed == 0
    assert extrapolate.table() in (ROOT / "docs" / "generated" / "extrapolation.md").read_text(encoding="utf-8")
    assert extrapolate.sharded_table(64) in (ROOT / "docs" / "generated" / "sharded_paper.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_memory_of_sharded_processes(tmp_path: Path) -> None:
    """The term is measured, and in the processes that are asked for."""
    sharded_memory = load("sharded_memory")
    given = ["--vocabulary", "5000", "--width", "32", "--items", "1", "--tokens", "32"]
    options = sharded_memory.parse(given)
    sharded_memory.save_model(tmp_path, options)
    allocated, resident = sharded_memory.measured(tmp_path, "head, row probes", options)
    assert allocated > 4 * 32 * 5000 and resident > 0
