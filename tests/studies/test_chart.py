"""The table of docs/does-it-help.md is what the stored runs say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats

from hf_fam.compare.journal import unpack

pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

ROOT = Path(__file__).parents[2]


def test_the_table_is_current(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "recipes/comparison/chart.py"), "--docs", str(tmp_path)], check=True, timeout=120
    )
    for name in ("does_it_help.md", "comparisons.md"):
        made = (tmp_path / "generated" / name).read_text(encoding="utf-8")
        assert made == (ROOT / "docs/generated" / name).read_text(encoding="utf-8")
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


def test_a_row_of_a_plan_agrees_with_its_runs() -> None:
    """Accuracies of a linear head with label noise, from the records of the runs instead of the result."""
    folders = (ROOT / "recipes/comparison/results/linear_images").glob("*cifar10-1000*noise0.2")
    lines = next(folders).joinpath("runs.jsonl").read_text(encoding="utf-8").splitlines()
    final = [run for run in map(json.loads, lines) if run["phase"] == "final"]
    of = {
        method: {run["seed"]: float(np.mean(unpack(run["items"]))) for run in final if run["method"] == method}
        for method in {run["method"] for run in final}
    }
    plain = [of["plain"][seed] for seed in sorted(of["plain"])]
    fam = [of["fam"][seed] for seed in sorted(of["plain"])]
    assert len({tuple(scores) for scores in of.values()}) == 1  # every method has the same seeds
    gain = np.subtract(fam, plain)
    low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
    rivals = {method: np.mean([*scores.values()]) for method, scores in of.items() if method not in ("plain", "fam")}
    table = (ROOT / "docs/generated/does_it_help.md").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| Linear head on frozen image"))
    shown = [float(number) for number in re.findall(r"[-+]?\d+\.\d", row)]
    expected = [np.mean(plain), np.mean(fam), gain.mean(), low, high, max(rivals.values())]
    assert shown == pytest.approx(expected, abs=0.051)
