"""recipes/gpu on a CPU with tiny shapes: the same code as on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes" / "benchmarks")]

from recipes.gpu import cost, driver, fashion_mnist  # noqa: E402
from recipes.gpu.rows import ROWS  # noqa: E402

CPU = ["--device", "cpu", "--tiny"]


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cost_of_some_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that fails is noted and does not stop the others."""
    monkeypatch.setitem(ROWS, "broken", cost.Row(lambda tiny: 1 / 0, ROWS["bert"].batch, {}))
    cost.main([*CPU, "--output", str(tmp_path), "--rows", "stored_features,broken,bert", "--seconds", "30"])
    card, *results = entries(tmp_path / "cost.jsonl")
    assert card["bfloat16"] > 0 and card["float32"] > 0 and card["bytes"] > 0 and card["card"] == "CPU"
    assert [(r["row"], r.get("contender")) for r in results] == [
        ("stored_features", "plain"), ("stored_features", "head"), ("stored_features", "sam"), ("broken", None),
        *(("bert", name) for name in ("plain", "head", "representation", "perturbation", "sam", "neftune")),
    ]  # fmt: skip
    assert "ZeroDivisionError" in results[3]["error"]
    for result in results[:3] + results[4:]:
        low, median, high = result["ratio"]
        assert 0 < low <= median <= high and result["rounds"] == 3
        assert result["floor_ms"] > 0 or result["contender"] == "perturbation"
        assert result["kernels"]["count"] > 0 and result["kernels"]["longest"]
    by_name = {(r["row"], r.get("contender")): r for r in results}
    assert by_name["bert", "sam"]["operations"] == 2 * by_name["bert", "plain"]["operations"]
    assert by_name["bert", "head"]["operations"] > by_name["bert", "plain"]["operations"]
    assert capsys.readouterr().out.count("stored_features") >= 3


def test_fashion_mnist(tmp_path: Path) -> None:
    fashion_mnist.main([*CPU, "--output", str(tmp_path)])
    found = entries(tmp_path / "fashion_mnist.jsonl")
    assert [(r["method"], r["seed"]) for r in found] == [(m, s) for s in (0, 1) for m in ("plain", "fam", "sam")]
    assert all(0 <= r["accuracy"] <= 1 and r["epochs"] == 1 for r in found)


def test_fashion_mnist_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    with pytest.raises(SystemExit, match="not run: FASHION_MNIST must name the folder"):
        fashion_mnist.main(["--device", "cpu", "--output", str(tmp_path)])


def test_sections_that_fail_or_take_too_long_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        driver.Section("failing", ["-c", "raise SystemExit('a reason')"], 20),
        driver.Section("endless", ["-c", "import time; print('begun', flush=True); time.sleep(60)"], 2),
        driver.Section("good", ["-c", "print('a result')"], 20),
    ]
    monkeypatch.setattr(driver, "sections", lambda options: parts)
    assert driver.main([*CPU, "--output", str(tmp_path)]) == 1
    assert [(r["section"], r["code"]) for r in entries(tmp_path / "sections.jsonl")] == [
        ("failing", 1), ("endless", "out of time"), ("good", 0),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "a reason" in said and "begun" in said and "a result" in said


def test_everything_fits_into_nine_minutes() -> None:
    options = driver.argparse.Namespace(output=Path("out"), device="cuda", tiny=False)
    assert sum(section.seconds for section in driver.sections(options)) <= 540


@pytest.mark.slow
def test_the_whole_run(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "recipes" / "gpu" / "run.sh"), *CPU]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-5000:]
    assert all(r["code"] == 0 for r in entries(tmp_path / "sections.jsonl"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= 8 and {r["row"] for r in entries(tmp_path / "cost.jsonl")} == {"card", *ROWS}
