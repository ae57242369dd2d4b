"""A step in which one of two processes does not call the layer: the log is the mean of both (gloo, CPU)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.launch import launch

SCRIPT = Path(__file__).with_name("skipped_tiny.py")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_the_log_is_the_mean_of_both_processes(tmp_path: Path) -> None:
    launch(SCRIPT, str(tmp_path))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["logged"] == pytest.approx(found["expected"], rel=1e-6) and found["expected"] != 0
    # Only the first step of the centered training has no kappa: it provides the mean.
    assert len(found["kappas"]) == 4 and all(value != 0 for value in found["kappas"])
    assert found["same"]
