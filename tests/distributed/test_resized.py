"""A checkpoint under FSDP2 resumes in another number of processes, to the weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.launch import ROOT, launch
from support.resized_training import CASE, KINDS, SETTINGS
from support.sharded_trainings import trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
]

SCRIPT = ROOT / "tests" / "support" / "resized_training.py"
# Largest relative difference of the weights after five steps of AdamW in float64.
TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Weights of five steps in one process."""
    return trained(tmp_path_factory.mktemp("alone"), CASE, 1, sharded=False, **SETTINGS)["weights"]


@pytest.mark.parametrize(("processes", "later"), [(2, 4), (4, 2)])
def test_resumed_in_another_number_of_processes(tmp_path: Path, alone: Any, processes: int, later: int) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, count, checkpoints in ((first, processes, []), (second, later, [str(first)])):
        folder.mkdir()
        launch(SCRIPT, str(folder), *checkpoints, as_gpus=True, processes=count)
    for kind in KINDS:
        resumed = torch.load(second / "found.pt", weights_only=False)[kind]
        assert resumed["model"].startswith("FSDP") and len(resumed["fam_kappa"]) == 5, "three steps are those before"
        assert float((resumed["weights"] - alone).norm() / alone.norm()) < TOLERANCE, kind
