"""The recipe gan_interpolation runs from end to end, small, and writes what docs/experiments.md includes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from support.small_fashion_mnist import write_small_fashion_mnist

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "gan_interpolation"
SCRIPTS = ("run", "report", "ring", "interpolation")
SIZES = {"pairs": 2, "gan_steps": 2, "judge_epochs": 1, "points": 4, "steps": 2, "calibration": 16}
TINY = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]


class Recipe:
    """Its scripts and modules, imported as a script imports them."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """Other recipes have scripts of the same names, so these are forgotten before and after."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), str(FOLDER.parent / "benchmarks"), *sys.path])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    kept = dict(sys.modules)
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    yield Recipe()
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    sys.modules.update({name: kept[name] for name in SCRIPTS if name in kept})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_fashion_mnist(tmp_path / "data", train=256, test=80)


def test_from_runs_to_tables(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    for seed in ("0", "1"):
        strips = docs / "img" / "strips.png"
        recipe.run.main(
            ["--data_dir", str(data), "--output", str(results), "--strips", str(strips), "--seed", seed, *TINY]
        )
    recipe.report.main(["--results", str(results), "--docs", str(docs)])
    runs = [json.loads((results / f"seed-{seed}.json").read_text()) for seed in (0, 1)]
    for run in runs:
        assert list(run["measures"]) == ["linear", "slerp", "pullback", "feature", "conformal", "critic"]
        for measures in run["measures"].values():
            assert all(len(values) == 2 and np.isfinite(values).all() for values in measures.values())
            assert np.all(np.array(measures["worst_critic"]) <= measures["mean_critic"])
            assert np.all(np.array(measures["worst_distance"]) >= measures["mean_distance"])
        straight = run["measures"]["linear"]["latent_length"]
        assert all((np.array(m["latent_length"]) > np.array(straight) - 1e-4).all() for m in run["measures"].values())
    assert runs[0]["measures"] != runs[1]["measures"]
    folder = docs / "generated" / "gan_interpolation"
    assert (folder / "means.md").read_text().count("\n| ") == 7
    differences = (folder / "differences.md").read_text()
    assert differences.count("\n| ") == 6 and differences.count("of 2)") == 25
    assert {path.name for path in (docs / "img").iterdir()} == {"gan_interpolation.png", "strips.png"}


def test_a_run_repeats(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        torch.rand(3)  # whatever was drawn before
        recipe.run.main(["--data_dir", str(data), "--output", str(tmp_path / folder), *TINY])
    assert (tmp_path / "one/seed-0.json").read_bytes() == (tmp_path / "two/seed-0.json").read_bytes()


def test_missing_data_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte.gz"):
        recipe.run.main(["--data_dir", str(tmp_path), *TINY])
    with pytest.raises(SystemExit, match="run run.py first"):
        recipe.report.main(["--results", str(tmp_path), "--docs", str(tmp_path)])


def test_the_jury(recipe: Recipe, data: Path) -> None:
    """Distances by a loop; real images are at 1 on average, and noise is farther."""
    assert recipe.run.main  # which imports all of experiment
    experiment = recipe.experiment
    (images, labels), (real, names) = experiment.data.fashion_mnist(data)
    judge = experiment.training.train_judge(images, labels, 3, 0)
    jury = experiment.judging.Jury(judge, real, names)
    assert jury.accuracy > 0.9
    with torch.no_grad():
        seen, known = judge.features(images[:3]), judge.features(real)
    by_hand = [sorted((known - one).norm(dim=1).tolist())[4] for one in seen]
    own = [sorted((known - one).norm(dim=1).tolist())[5] for one in known]
    torch.testing.assert_close(jury.distance(images[:3]), torch.tensor(by_hand) / np.mean(own), rtol=1e-3, atol=1e-3)
    noise = 2 * torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0)) - 1
    assert jury.distance(noise).mean() > 2 * jury.distance(images).mean()


def test_holm_and_differences(recipe: Recipe) -> None:
    report = recipe.report
    corrected = report.holm({("a", "x"): 0.01, ("b", "x"): 0.04, ("c", "x"): 0.03})
    assert corrected == pytest.approx({("a", "x"): 0.03, ("c", "x"): 0.06, ("b", "x"): 0.06})
    straight = dict.fromkeys(report.LENGTHS | report.QUALITY, [0.0] * 12)
    better = {**straight, "worst_critic": [1.0 + k for k in range(12)]}
    runs = [{"measures": {"linear": straight, "critic": better}}]
    found = report.p_values(runs, report.QUALITY)
    assert found["critic", "worst_critic"] == pytest.approx(5 * 2 / 2**12)  # all signs equal, five comparisons
    assert found["critic", "mean_critic"] == 1


def test_the_ring_in_the_docs_is_what_is_found(recipe: Recipe) -> None:
    ring = recipe.ring
    published = (ROOT / "docs/generated/gan_interpolation/ring.md").read_text()
    for name, critic in ring.CRITICS.items():
        assert ring.row(name, critic, ring.SEARCHES[2]) in published


def test_what_is_in_the_docs_comes_from_the_results(recipe: Recipe, tmp_path: Path) -> None:
    recipe.report.main(["--docs", str(tmp_path)])
    for name in ("settings.md", "means.md", "differences.md"):
        made = (tmp_path / "generated/gan_interpolation" / name).read_text()
        assert made == (ROOT / "docs/generated/gan_interpolation" / name).read_text(), "run report.py"


def test_cost(recipe: Recipe, tmp_path: Path) -> None:
    recipe.interpolation.main(["--rounds", "2", "--steps", "1", "--output", str(tmp_path / "cost.md")])
    text = (tmp_path / "cost.md").read_text()
    published = (ROOT / "docs/generated/gan_interpolation/cost.md").read_text()
    sizes = [line.split("|")[1:5] for line in text.splitlines()]
    assert len(sizes) > 18 and sizes == [line.split("|")[1:5] for line in published.splitlines()]
