"""The benchmark of measuring runs, and what it calls a product is one for both sides."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "measuring.py"
ITEMS, BATCH, VECTORS = 40, 16, 12  # batches of 16, 16 and 8
LOOK = 4  # items 0 to 15 are told apart by four bits


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measuring_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["measuring_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("layer", "coupling", "look"),
    [("representation", "rows", LOOK), ("bert.encoder.layer.0.output.dense", "items", LOOK + 1)],
)
def test_products_are_counted_alike(
    benchmark: ModuleType, layer: str, coupling: str, look: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's calls as they are counted, and against what the method takes on paper."""
    monkeypatch.setattr(benchmark, "ERROR", 0.3)
    output = tmp_path / "out.json"
    benchmark.main(
        ["--size", "tiny", "--items", str(ITEMS), "--length", "6", "--batch-size", str(BATCH), "--layer", layer,
         "--hutchinson", str(VECTORS), "--training-steps", "1", "--output", str(output)]
    )  # fmt: skip
    result = json.loads(output.read_text())
    measuring, products = result["measuring"], result["products_for_one_percent"]
    assert measuring["coupling"] == coupling and measuring["relative_error"] <= 0.3
    per_batch = measuring["probes"] or measuring["size"][0]  # exact: one product for every output
    assert products["ours_taken"] == 3 * per_batch + look
    assert products["hutchinson_taken"] == 3 * VECTORS
    assert products["hutchinson"] == pytest.approx(3 * (products["hutchinson_relative_deviation"] / 0.3) ** 2)
    assert products["ratio_low"] < products["ratio"] < products["ratio_high"]
    assert products["ratio"] == pytest.approx(products["hutchinson"] / products["ours"])


def test_one_batch_cannot_be_timed(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="two are needed"):
        benchmark.main(["--size", "tiny", "--items", "8", "--batch-size", "8"])
