"""The experiment with the independent judge runs from end to end, and writes what docs/experiments.md includes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.recipe_scripts import recipe_scripts
from support.small_fashion_mnist import write_small_fashion_mnist

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "gan_interpolation"
SIZES = {"pairs": 2, "pairs_to_choose": 2, "epochs": 2, "judge_epochs": 1, "steps": 3, "search_steps": 2, "samples": 30}
TINY = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]
SCORES = ["pixels", "features", "density", "discriminator", "confidence", "reconstruction"]
DECODERS = ("perceptron", "convolutional")
TABLES = [f"choice_{decoder}_{kind}.md" for decoder in DECODERS for kind in ("known", "settings", "mean", "worst")]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with recipe_scripts(FOLDER, "choose", "choice_report", "report") as modules:
        yield modules


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_fashion_mnist(tmp_path / "data", train=300, test=80)


def test_from_runs_to_tables(recipe: dict[str, ModuleType], data: Path, tmp_path: Path) -> None:
    results, docs, again = tmp_path / "results", tmp_path / "docs", tmp_path / "again"
    strips = docs / "strips.png"
    for decoder, seed, folder in (
        ("perceptron", "0", results), ("perceptron", "1", results),
        ("convolutional", "0", results), ("convolutional", "0", again),
    ):  # fmt: skip
        torch.rand(3)  # whatever was drawn before
        recipe["choose"].main(
            ["--data_dir", str(data), "--output", str(folder), "--decoder", decoder, "--strips", str(strips),
             "--seed", seed, *TINY]
        )  # fmt: skip
    repeated = "choice-convolutional-seed-0.json"
    assert (results / repeated).read_bytes() == (again / repeated).read_bytes()
    recipe["choice_report"].main(["--results", str(results), "--docs", str(docs)])
    folder = docs / "generated" / "gan_interpolation"
    for decoder in DECODERS:
        runs = [json.loads(file.read_text()) for file in sorted(results.glob(f"choice-{decoder}-*.json"))]
        assert len(runs) == (2 if decoder == "perceptron" else 1)
        assert all(run["methods"] != runs[0]["methods"] for run in runs[1:])
        for run in runs:
            assert len(run["chosen"]) == 8 and len(run["methods"]) == 8 + 4
            for parts in run["methods"].values():
                for part in parts.values():
                    assert list(part) == SCORES
                    assert all(low <= mean <= high for mean, low, high in part.values())
            assert run["generator"]["reconstructions"] > run["generator"]["real images"] >= 0
        for kind in ("mean", "worst"):
            assert (folder / f"choice_{decoder}_{kind}.md").read_text().count("\n| ") == 12 + 1
    assert (folder / "choice_generators.md").read_text().count("convolutional") == 1
    assert strips.is_file()


def test_missing_results_are_named(recipe: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run choose.py first"):
        recipe["choice_report"].main(["--results", str(tmp_path), "--docs", str(tmp_path)])


def test_what_is_in_the_docs_comes_from_the_results(recipe: dict[str, ModuleType], tmp_path: Path) -> None:
    recipe["choice_report"].main(["--docs", str(tmp_path)])
    for name in [*TABLES, "choice_generators.md"]:
        made = (tmp_path / "generated/gan_interpolation" / name).read_text()
        assert made == (ROOT / "docs/generated/gan_interpolation" / name).read_text(), "run choice_report.py"


def test_the_judge_in_the_results_orders_images_as_a_person_would(recipe: dict[str, ModuleType]) -> None:
    """Middles of straight lines are worse than the images that they lead from, by the scores that see shapes."""
    files = sorted((FOLDER / "results").glob("choice-*-seed-*.json"))
    assert len(files) >= 2
    for file in files:
        known = json.loads(file.read_text())["known"]
        for score in ("features", "density", "discriminator", "confidence"):
            assert known["middles of straight lines"][score] < known["their reconstructions"][score] - 0.1
        assert all(abs(value) < 0.35 for value in known["real images"].values())
