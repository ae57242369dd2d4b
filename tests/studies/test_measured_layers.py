"""The figure of docs/measure.md is made from a training to a picture."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


def test_from_training_to_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "recipes" / "measured_layers" / "figure.py"))
    script["main"](["--steps", "3", "--output", str(tmp_path / "figure.png")])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]] == ["first", "second", "head"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
