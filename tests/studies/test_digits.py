"""The scripts on scikit-learn's digits run, and what they write is what they promise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from support.recipe_scripts import recipe_scripts

FOLDER = Path(__file__).parents[2] / "recipes" / "digits"


@pytest.fixture
def scripts() -> Iterator[dict[str, ModuleType]]:
    with recipe_scripts(FOLDER, "network", "feature_robustness", "reparametrization", "representativeness") as modules:
        yield modules


def test_feature_robustness(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "curve.png"
    scripts["feature_robustness"].main(["--items", "80", "--output", str(output)])
    printed = capsys.readouterr().out
    assert all(f"{delta:g}" in printed for delta in scripts["feature_robustness"].DELTAS)
    assert output.stat().st_size > 10_000


def test_reparametrization(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    """The function and both kappas stay, the other measures do not."""
    output = tmp_path / "out" / "picture.png"
    scripts["reparametrization"].main(["--items", "40", "--output", str(output)])
    rows = json.loads(output.with_suffix(".json").read_text())
    assert [row["spread"] for row in rows] == list(scripts["reparametrization"].SPREADS)
    for row in rows:
        assert row["difference"] < 1e-10
        for name in ("kappa", "kappa_max"):
            assert row[name] == pytest.approx(rows[0][name], rel=1e-5)
    for name in ("hessian_trace", "hessian_max_eigenvalue", "weight_norm"):
        values = [abs(row[name]) for row in rows]
        assert max(values) > 5 * min(values)
    assert output.stat().st_size > 10_000


@pytest.mark.slow
def test_the_numbers_of_the_page_are_those_of_the_present_code(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    output = tmp_path / "picture.png"
    scripts["reparametrization"].main(["--output", str(output)])
    stored = FOLDER.parents[1] / "docs" / "img" / "reparametrization.json"
    expected, actual = (json.loads(path.read_text()) for path in (stored, output.with_suffix(".json")))
    for before, now in zip(expected, actual, strict=True):
        assert now == pytest.approx(before, rel=1e-3, abs=1e-10)


def test_representativeness(scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kinds of features with three deltas; the released estimate is that of a loop over its kernels."""
    monkeypatch.setattr(scripts["representativeness"], "SAMPLES", 2)
    output, theirs = tmp_path / "out" / "table.md", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "interpolatingness.py").write_text(
        "import math\n"
        "def approximateIntViaVKDE_singleRound(x, y, held_x, held_y, psi, delta, loss):\n"
        "    norms = [math.dist(row, 0 * row) for row in x]\n"
        "    total = 0.0\n"
        "    for one, label in zip(held_x, held_y):\n"
        "        under = sum(\n"
        "            norm / sum(norms) * math.exp(-math.dist(one, row) / 2) / math.sqrt(2 * math.pi)\n"
        "            * loss(label, psi.predict(row[None])).item()\n"
        "            for norm, row in zip(norms, x)\n"
        "        )\n"
        "        total += loss(label, psi.predict(one[None])).item() - under / len(x)\n"
        "    return total / len(held_x)\n"
    )
    given = ["--items", "120", "--folds", "2", "--output", str(output)]
    with recipe_scripts(theirs, "interpolatingness"):
        scripts["representativeness"].main([*given, "--released", str(theirs)])
    first, second = output.read_text().split("Mean log density of held-out items:")
    rows = [line.strip("| ").split(" | ") for line in first.splitlines() if line[:3] in {"| t", "| u"}]
    assert [row[1] for row in rows] == ["0.1", "0.3", "1"] * 3
    values = np.array([[float(cell) for cell in row[2:]] for row in rows])
    assert np.isfinite(values).all() and (values[:, 2] > 0).all()
    assert second.count("\n| trained on") == 2 and second.count("\n| untrained") == 1
    scripts["representativeness"].main(given)
    assert output.read_text().split("Mean log")[0] == first, "the released code changes the table"
