"""The experiment with the independent judge runs from end to end, and writes what docs/experiments.md includes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.small_fashion_mnist import write_small_fashion_mnist

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "gan_interpolation"
SIZES = {"pairs": 2, "pairs_to_choose": 2, "epochs": 2, "judge_epochs": 1, "steps": 3, "search_steps": 2, "samples": 30}
TINY = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]
SCRIPTS = ("choose", "choice_report", "report")
SCORES = ["pixels", "features", "density", "discriminator", "confidence", "reconstruction"]
TABLES = ("choice_known.md", "choice_settings.md", "choice_mean.md", "choice_worst.md")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Other recipes have scripts of the same names, so these are forgotten before and after."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    kept = {name: sys.modules.pop(name) for name in SCRIPTS if name in sys.modules}
    yield {name: importlib.import_module(name) for name in SCRIPTS}
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_fashion_mnist(tmp_path / "data", train=300, test=80)


def test_from_runs_to_tables(recipe: dict[str, ModuleType], data: Path, tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    for seed, folder in (("0", results), ("1", results), ("0", tmp_path / "again")):
        torch.rand(3)  # whatever was drawn before
        strips = docs / "strips.png"
        recipe["choose"].main(
            ["--data_dir", str(data), "--output", str(folder), "--strips", str(strips), "--seed", seed, *TINY]
        )
    assert (results / "choice-seed-0.json").read_bytes() == (tmp_path / "again/choice-seed-0.json").read_bytes()
    recipe["choice_report"].main(["--results", str(results), "--docs", str(docs)])
    runs = [json.loads((results / f"choice-seed-{seed}.json").read_text()) for seed in (0, 1)]
    assert runs[0]["methods"] != runs[1]["methods"]
    for run in runs:
        assert len(run["chosen"]) == 8 and len(run["methods"]) == 8 + 4
        for parts in run["methods"].values():
            for part in parts.values():
                assert list(part) == SCORES
                assert all(low <= mean <= high for mean, low, high in part.values())
    folder = docs / "generated" / "gan_interpolation"
    for name in TABLES[2:]:
        assert (folder / name).read_text().count("\n| ") == 12 + 1
    assert (docs / "strips.png").is_file()


def test_missing_results_are_named(recipe: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run choose.py first"):
        recipe["choice_report"].main(["--results", str(tmp_path), "--docs", str(tmp_path)])


def test_what_is_in_the_docs_comes_from_the_results(recipe: dict[str, ModuleType], tmp_path: Path) -> None:
    recipe["choice_report"].main(["--docs", str(tmp_path)])
    for name in TABLES:
        made = (tmp_path / "generated/gan_interpolation" / name).read_text()
        assert made == (ROOT / "docs/generated/gan_interpolation" / name).read_text(), "run choice_report.py"


def test_the_judge_in_the_results_orders_images_as_a_person_would(recipe: dict[str, ModuleType]) -> None:
    """Middles of straight lines are worse than the images that they lead from, by the scores that see shapes."""
    files = sorted((FOLDER / "results").glob("choice-seed-*.json"))
    assert files
    for file in files:
        known = json.loads(file.read_text())["known"]
        for score in ("features", "density", "discriminator", "confidence"):
            assert known["middles of straight lines"][score] < known["their reconstructions"][score] - 0.1
        assert all(abs(value) < 0.35 for value in known["real images"].values())
