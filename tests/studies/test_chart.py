"""The table of docs/does-it-help.md is what the stored runs say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

ROOT = Path(__file__).parents[2]


def test_the_table_is_current(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "recipes/comparison/chart.py"), "--docs", str(tmp_path)], check=True, timeout=120
    )
    made = (tmp_path / "generated" / "does_it_help.md").read_text(encoding="utf-8")
    assert made == (ROOT / "docs/generated/does_it_help.md").read_text(encoding="utf-8")
    assert (tmp_path / "img" / "does-it-help.png").stat().st_size > 20_000


def test_a_row_agrees_with_the_runs() -> None:
    """The gain of a small network with label noise, computed another way."""
    runs = pandas.read_parquet(ROOT / "recipes/comparison/results/frozen_mlp.parquet")
    runs = runs[(runs.task == "banking77-10-shot-noise0.2") & runs.seed.between(150, 169)]
    plain = runs[(runs.method == "plain") & runs.settings.str.contains('"learning_rate": 0.0001,')]
    kappa = runs[
        (runs.method == "fam")
        & runs.settings.str.contains('"learning_rate": 0.001,')
        & runs.configuration.str.contains('"gauss_newton", "strength": 0.01}')
    ]
    accuracies = [
        np.array([entry["accuracy"] for entry in part.drop_duplicates("seed").sort_values("seed").test])
        for part in (plain, kappa)
    ]
    gain = 100 * np.mean(accuracies[1] - accuracies[0])
    table = (ROOT / "docs/generated/does_it_help.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| Small network") and "20 % noise" in line)
    shown = re.search(r"\+(\d+\.\d) \(", row)
    assert shown is not None and float(shown.group(1)) == pytest.approx(gain, abs=0.051)
