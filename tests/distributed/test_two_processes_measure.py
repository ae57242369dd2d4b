"""Two processes return the numbers of one (gloo, CPU)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.launch import launch

SCRIPT = Path(__file__).with_name("measure_tiny.py")


def run(folder: Path, processes: int) -> dict[str, Any]:
    output = folder / f"{processes}.json"
    launch(SCRIPT, str(output), config=None if processes == 1 else "ddp_cpu.yaml")
    result = json.loads(output.read_text())
    assert result["processes"] == processes
    return result


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    assert [r["layer"] for r in one["all"]["layers"]][1:] == ["classifier", "bert.encoder.layer.0.output.dense"]
    for mine, theirs in zip(one["all"]["layers"], two["all"]["layers"], strict=True):
        kappas = mine.pop("item_kappas"), theirs.pop("item_kappas")
        assert sorted(kappas[0]) == pytest.approx(sorted(kappas[1]), rel=1e-9)
        for name, value in mine.items():
            if isinstance(value, float) and name != "seconds":
                assert theirs[name] == pytest.approx(value, rel=1e-7), (mine["layer"], name)
            elif name not in ("seconds", "products"):
                assert theirs[name] == value, name
    assert two["stopped"]["settings"]["stopped_early"]
    assert two["stopped"]["layers"][0]["num_items"] % 4 == 0  # both processes stopped in the same round
