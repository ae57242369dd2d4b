"""A training under FSDP2 that goes on in another number of processes; launched by tests/distributed/test_resized.py."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from support.leaving import leave_together
from support.sharded_trainings import CASES, as_gpus, trained

CASE = "wrapped with the last norm"
KINDS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
# The optimizer has a state.
SETTINGS: dict[str, Any] = {"optim": "adamw_torch", "adam_epsilon": 1e-3}


def other_weights() -> nn.Module:
    """What a checkpoint has to replace."""
    model = CASES[CASE].model()
    for weight in model.parameters():
        nn.init.ones_(weight)
    return model


def main(folder: Path, first: Path | None) -> None:
    """Train with a checkpoint at step 3, or go on from the checkpoints of a first training."""
    torch.set_num_threads(1)
    as_gpus(True)
    found = {}
    for kind in KINDS:
        CASES[kind] = dataclasses.replace(CASES[CASE], fsdp={"state_dict_type": kind})
        given = {"save_strategy": "steps", "save_steps": 3}
        if first is not None:
            CASES[kind].model = other_weights
            given = {"resume_from_checkpoint": str(first / kind / "checkpoint-3")}
        processes = int(os.environ["WORLD_SIZE"])
        found[kind] = trained(folder, kind, processes, sharded=True, **given, **SETTINGS)
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
