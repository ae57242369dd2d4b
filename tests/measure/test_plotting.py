"""Figures of several runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_fam.measure.plotting import Panel, plot_runs


def test_a_quantity_that_a_run_lacks(tmp_path: Path) -> None:
    runs = {
        "one": [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0, "kappa": 3.0}],
        "other": [{"step": 0, "loss": 2.0}],
    }
    path = tmp_path / "runs.png"
    with pytest.raises(TypeError, match="no record of 'other' contains 'kappa', only loss, step"):
        plot_runs(runs, [Panel("loss", "loss"), Panel("kappa", "flatness")], path)
    assert not path.exists()
    plot_runs({"one": runs["one"]}, [Panel("loss", "loss"), Panel("kappa", "flatness")], path)  # in some records only
    assert path.stat().st_size > 1000
    without_step = {"one": [*runs["one"], {"loss": 0.5}]}
    plot_runs(without_step, [Panel("loss", "loss")], path)
    with pytest.raises(TypeError, match="no record of 'one' with 'loss' contains x='epoch' too"):
        plot_runs(without_step, [Panel("loss", "loss")], path, x="epoch")
