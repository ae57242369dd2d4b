"""The figure of docs/quickstart.md is made from two trainings to a picture, and says what its title says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


def test_from_training_to_figure(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "recipes" / "training_figure" / "figure.py"))
    curves = {method: script["trained"](strength, 0, 4) for method, strength in script["STRENGTHS"].items()}
    (plain_loss, plain_kappa), (loss, kappa) = curves["plain training"][-1], curves["FAM"][-1]
    assert loss == pytest.approx(plain_loss, rel=0.2) and loss < curves["FAM"][0][0] / 2
    assert 0 < kappa < 0.8 * plain_kappa
    script["draw"]({method: [curve] for method, curve in curves.items()}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
