"""The study's harness: runs, resumes, and the analysis of what it wrote. Random images, seconds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from PIL import Image

from support.recipe_scripts import recipe_scripts

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
    assert len(runs) == 2 and all(run["converged"] and abs(run["train_loss"] - 0.07) <= 0.002 for run in runs)
    for run in runs:
        before, after = run["before"], run["after"]
        for layer in ("fc2", "fc3"):
            for name in ("kappa", "kappa_max"):  # single precision weights
                assert after[layer][name] == pytest.approx(before[layer][name], rel=1e-3), (layer, name)
        assert after["fisher_rao"] == pytest.approx(before["fisher_rao"], rel=0.2)
        assert after["fc2"]["weight_norm"] > 1.5 * before["fc2"]["weight_norm"]
    output.write_text(lines[0] + "\n" + lines[1][:50])  # interrupted while writing
    again = command("run.py", *given)
    assert "1 networks are there, 1 to go" in again.stdout and "damaged line" in again.stderr
    second = next(json.loads(line) for line in output.read_text().splitlines()[1:])
    assert second["before"] == runs[1]["before"]  # the same seed, the same network


def analysed(runs: list[dict[str, Any]], folder: Path) -> str:
    """The analysis of some networks, as text."""
    path = folder / "runs.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    done = command("analysis.py", str(path), "--output", str(folder / "out"), "--resamples", "50")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "out" / "gap.png").stat().st_size > 10_000
    return (folder / "out" / "correlations.md").read_text()


def network(k: int, kappas: tuple[float, float]) -> dict[str, Any]:
    """A line of the study's file."""
    generator = np.random.default_rng(k)
    names = ("kappa_max", "layerwise", "kappa_plain", "layerwise_plain", "trace", "lambda_max", "weight_norm")

    def measures(kappa: float) -> dict[str, Any]:
        of_layer = {**{name: float(generator.uniform(1, 2)) for name in names}, "kappa": kappa}
        return {
            **dict.fromkeys(("fc2", "fc3"), of_layer),
            "fisher_rao": 1.0 + k,
            "pac_bayes": float(generator.uniform(1, 2)),
        }

    return {
        "optimizer": ("sgd", "adam")[k % 2], "learning_rate": k, "batch_size": 32, "weight_decay": 0.0,
        "converged": k != 11, "target": 0.1, "train_loss": 0.1, "gap": float(k),
        "train_accuracy": 1.0, "test_accuracy": k / 100, "before": measures(kappas[0]), "after": measures(kappas[1]),
    }  # fmt: skip


def test_analysis(tmp_path: Path) -> None:
    runs = [network(k, (10.0**k, 10.0 ** (k * 7 % 12))) for k in range(12)]
    text = analysed(runs, tmp_path)
    assert "11 of 12 networks" in text
    for layer in ("fc2", "fc3"):
        row = f"{layer}: κ, features normalized"
        assert f"| {row} | +1.00 [+1.00, +1.00] |" in text and text.count(row) == 4
        assert f"| {row} | -1.00 [-1.00, -1.00] |" in text.split("The gap in accuracy instead")[1]
    (tmp_path / "runs.jsonl").write_text(json.dumps(runs[-1]) + "\n")
    assert "at least 3 are needed" in command("analysis.py", str(tmp_path / "runs.jsonl")).stderr


def test_correlations_of_resamples_are_those_of_scipy() -> None:
    """Each resample as a list of networks, also with ties and constants."""
    generator = np.random.default_rng(0)
    x, y, z = generator.integers(0, 6, (3, 15)) + np.array([[0.0], [0.5], [1e3]])
    drawn = generator.integers(0, 15, (40, 15))
    drawn[0] = 3
    how_often = np.array([np.bincount(row, minlength=15) for row in drawn])
    with recipe_scripts(FOLDER, "analysis") as scripts:
        analysis = scripts["analysis"]
        found = [analysis.kendall(how_often, x, y), analysis.pearson(how_often, x, z)]
    for k, row in enumerate(drawn):
        if k == 0:
            assert np.isnan([found[0][k], found[1][k]]).all()
            continue
        assert found[0][k] == pytest.approx(scipy.stats.kendalltau(x[row], y[row]).statistic, abs=1e-12)
        assert found[1][k] == pytest.approx(np.corrcoef(x[row], z[row])[0, 1], abs=1e-9)


def test_a_setting_is_drawn_with_all_its_seeds() -> None:
    with recipe_scripts(FOLDER, "analysis") as scripts:
        runs = [{**network(k // 3, (1.0, 1.0)), "seed": k % 3} for k in range(12)]
        how_often = scripts["analysis"].resample(runs, 200)
    assert how_often.shape == (200, 12) and (how_often.sum(1) == 12).all()
    assert (how_often.reshape(200, 4, 3) == how_often[:, ::3, None]).all() and len(np.unique(how_often, axis=0)) > 20


def test_an_unfinished_study_is_no_selection_by_setting() -> None:
    """Every fast setting comes once, and of those that follow each optimizer, batch size and rate has a share."""
    with recipe_scripts(FOLDER, "network", "measures", "run") as scripts:
        planned = scripts["run"].settings()
        slow = [scripts["run"].is_slow(setting) for setting in planned]
    assert len({setting.key for setting in planned}) == len(planned) == 108
    assert slow == sorted(slow) and slow.count(True) == 21
    first = [setting for setting, is_slow in zip(planned, slow, strict=True) if not is_slow][:40]
    assert [setting.seed for setting in first] == [0] * 29 + [1] * 11
    for name, values in (("optimizer", 2), ("batch_size", 3), ("weight_decay", 3), ("learning_rate", 5)):
        part = [getattr(setting, name) for setting in first[29:]]
        assert len(set(part)) == values, name


def test_no_network_is_begun_after_the_deadline() -> None:
    with recipe_scripts(FOLDER, "network", "measures", "run") as scripts:
        assert scripts["run"].one_network((scripts["network"].Setting("sgd", 0.01, 32, 0.0, 0), 0.07, 1, 0.0)) is None


def test_networks_on_a_line_have_the_target_loss() -> None:
    with recipe_scripts(FOLDER, "network") as scripts:
        network = scripts["network"]
    evaluate = network.evaluate
    torch.manual_seed(0)
    data = network.Split(torch.randn(60, 3, 32, 32), torch.arange(60) % 10)
    above, below = network.LeNet5(), network.LeNet5()
    optimizer = torch.optim.Adam(below.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(below(data.images), data.labels).backward()
        optimizer.step()
    high, low = evaluate(above, data)[0], evaluate(below, data)[0]
    target = (high + low) / 2
    model, place = network.at_loss(target, above, below, data)
    assert low < target < high and 0 < place < 1
    assert abs(evaluate(model, data)[0] - target) <= network.TOLERANCE
    assert evaluate(below, data)[0] == low
