"""The study's harness: runs, resumes, and the analysis of what it wrote. Random images, seconds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "recipes" / "flatness_study"


def command(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def images(path: Path, count: int) -> None:
    """Images whose class can be seen, so that training gets somewhere."""
    generator, rows = np.random.default_rng(0), []
    for k in range(count):
        pixels = generator.integers(0, 60, (32, 32, 3))
        pixels[:, 3 * (k % 10) : 3 * (k % 10) + 3] += 150
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        rows.append({"idx": k, "image": {"bytes": buffer.getvalue(), "path": None}, "label": k % 10})
    pandas.DataFrame(rows).to_parquet(path)


@pytest.mark.slow
def test_the_study_runs_resumes_and_is_analysed(tmp_path: Path) -> None:
    images(tmp_path / "train-15k.parquet", 200)
    images(tmp_path / "test.parquet", 100)
    output = tmp_path / "runs.jsonl"
    given = ["--data", str(tmp_path), "--output", str(output), "--smoke", "--train-items", "200", "--jobs", "1"]
    done = command("run.py", *given)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = output.read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert len(runs) == 2 and all(run["converged"] and run["train_loss"] <= 0.1 for run in runs)
    for run in runs:
        before, after = run["before"], run["after"]
        for name in ("kappa", "kappa_max"):  # single precision weights
            assert after[name] == pytest.approx(before[name], rel=1e-3), name
        assert after["fisher_rao"] == pytest.approx(before["fisher_rao"], rel=0.2)
        assert after["weight_norm"] > 1.5 * before["weight_norm"]
    output.write_text(lines[0] + "\n" + lines[1][:50])  # interrupted while writing
    again = command("run.py", *given)
    assert "1 networks are there, 1 to go" in again.stdout and "damaged line" in again.stderr
    second = next(json.loads(line) for line in output.read_text().splitlines()[1:])
    assert second["before"]["kappa"] == runs[1]["before"]["kappa"]  # the same seed, the same network


def test_analysis(tmp_path: Path) -> None:
    generator, runs = np.random.default_rng(0), []
    names = ["kappa", "kappa_max", "layerwise", "kappa_plain", "layerwise_plain", "trace", "lambda_max", "weight_norm"]
    names += ["fisher_rao", "pac_bayes"]
    for k in range(12):
        values = {name: float(generator.uniform(1, 2)) for name in names}
        before, after = {**values, "kappa": 10.0**k}, {**values, "kappa": 10.0 ** (k * 7 % 12)}
        runs.append(
            {"optimizer": ("sgd", "adam")[k % 2], "converged": k != 11, "target": 0.1, "train_loss": 0.1,
             "gap": float(k), "train_accuracy": 1.0, "test_accuracy": k / 100, "before": before, "after": after}
        )  # fmt: skip
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    done = command("analysis.py", str(path), "--output", str(tmp_path / "out"), "--resamples", "50")
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "out" / "correlations.md").read_text()
    assert "11 of 12 networks" in text
    assert "| κ, features normalized | +1.00 [+1.00, +1.00] |" in text and text.count("κ, features normalized") == 4
    assert "| κ, features normalized | -1.00 [-1.00, -1.00] |" in text.split("The gap in accuracy instead")[1]
    assert (tmp_path / "out" / "gap.png").stat().st_size > 10_000
    path.write_text(json.dumps(runs[-1]) + "\n")
    assert "at least 3 are needed" in command("analysis.py", str(path), "--output", str(tmp_path)).stderr
