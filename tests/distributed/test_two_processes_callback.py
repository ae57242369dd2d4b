"""FlatnessCallback logs in two processes what it logs in one, and leaves the training alone (gloo, CPU)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.launch import launch

BLOCK = "bert.encoder.layer.0.output.dense"
SCRIPT = Path(__file__).with_name("callback_tiny.py")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_log_what_one_does(tmp_path: Path) -> None:
    folders = {None: tmp_path / "one", "ddp_cpu.yaml": tmp_path / "two"}
    for config, folder in folders.items():
        folder.mkdir()
        launch(SCRIPT, str(folder / "found.json"), config=config)
    one, two = (json.loads((folder / "found.json").read_text()) for folder in folders.values())
    assert (one["processes"], two["processes"]) == (1, 2)
    for run in (one, two):
        assert run["items"] == [7, 7, 9]
        for logged, expected in zip(run["logged"], run["expected"], strict=True):
            assert logged == pytest.approx(expected, rel=1e-9)
        first, last = run["kappas"]
        assert set(first) == {f"eval_kappa{layer}{end}" for layer in ("", f"_{BLOCK}") for end in ("", "_error")}
        assert [last["eval_kappa"], last[f"eval_kappa_{BLOCK}"]] == run["logged"][0]
        assert all(run["same"]) and len(run["same"]) == run["processes"]
        assert first["eval_kappa"] != last["eval_kappa"]
    for folder, run in zip(folders.values(), (one, two), strict=True):
        assert f"Kappa: {run['kappas'][-1]['eval_kappa']:.4f}" in (folder / "README.md").read_text()
