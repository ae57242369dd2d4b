"""FAMTrainer under DeepSpeed ZeRO stages 1 and 2, in two CPU processes over gloo: weights are those of one process.

DeepSpeed is no dependency of hf_fam: without it, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.distributed.run

from support.launch import ROOT, free_port, launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"),
]


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head in the backward pass, large or not, and a perturbed hidden layer; with accumulation, too."""
    from support.deepspeed_trainings import NAMES, in_float32
    from support.sharded_trainings import trained

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    script = ROOT / "tests" / "support" / "deepspeed_trainings.py"
    torchrun = [torch.distributed.run.__file__, "--nproc-per-node=2", f"--master-port={free_port()}"]
    launch(Path(torchrun[0]), *torchrun[1:], str(script), str(tmp_path), config=None, as_gpus=True)
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    in_float32()
    for name in NAMES:
        one = trained(tmp_path, name, 1, sharded=False)
        for stage in (1, 2):
            two = found[stage, name]
            difference = float((two["weights"] - one["weights"]).norm() / one["weights"].norm())
            assert difference < 1e-6, (stage, name)
            assert two["fam_kappa"] == pytest.approx(one["fam_kappa"], rel=1e-3), (stage, name)
