"""The figure of docs/flatness.md: a small run shows what it says, and its table is that of the stored records."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flatness_figure", ROOT / "recipes/flatness_figure/figure.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_from_training_to_figure(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ITEMS": 100, "WIDTH": 16, "LEARNING_RATE": 1e-2, "MATRICES": 6}.items():
        monkeypatch.setattr(script, name, value)
    script.main(["--docs", str(tmp_path), "--seeds", "2"])
    records = json.loads((tmp_path / "generated/flatness_figure/records.json").read_text())
    assert [(record["method"], record["seed"]) for record in records] == [
        (method, seed) for seed in (0, 1) for method in ("plain training", "FAM")
    ]
    for record in records:
        assert 0.08 < record["loss"] <= 0.1
        rise, predicted = (record[name][0] - record["loss"] for name in ("measured", "predicted"))
        assert predicted == pytest.approx(0.1**2 / (2 * 16) * record["kappa"], rel=1e-3)
        assert rise == pytest.approx(predicted, rel=0.3)
    for plain, fam in zip(records[::2], records[1::2], strict=True):
        assert fam["kappa"] < plain["kappa"]
        assert fam["measured"][-1] < plain["measured"][-1]
    assert (tmp_path / "img/flatness.png").stat().st_size > 10_000


def test_the_published_table_is_that_of_the_records(script: ModuleType) -> None:
    folder = ROOT / "docs/generated/flatness_figure"
    records = [script.Record(**values) for values in json.loads((folder / "records.json").read_text())]
    made = script.table(records)
    assert (folder / "table.md").read_text() == made, "run recipes/flatness_figure/figure.py --draw"
    assert "| κ of the head | 47.9 ± 1.2 | 5.1 ± 0.2 |" in made


def test_a_target_that_is_not_reached_is_an_error(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "MOST_STEPS", 1)
    with pytest.raises(RuntimeError, match="did not reach"):
        script.trained(script.PLAIN, 0)
