"""Trainings under DeepSpeed ZeRO stages 1 and 2 on CPUs; launched by tests/distributed/test_deepspeed.py."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from support.sharded_trainings import CASES, as_gpus, trained

NAMES = ("wrapped with the last norm", "perturbed", "large", "accumulated")
AUTO = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")


def configuration(stage: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **dict.fromkeys(AUTO, "auto"),
    }


def in_float32() -> None:
    """ZeRO keeps its copy of the weights in float32."""
    for name in NAMES:
        CASES[name] = dataclasses.replace(CASES[name], double=False)


def main(folder: Path) -> None:
    import deepspeed  # which is not always installed, and doctests import this module

    torch.set_num_threads(1)
    # Its own kernel for processes of one machine takes minutes to compile; gloo does the same.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    as_gpus(True)
    in_float32()
    found = {}
    for stage in (1, 2):
        for name in NAMES:
            given = {"deepspeed": configuration(stage), "use_cpu": False}
            found[stage, name] = trained(folder, name, 2, sharded=False, **given)
    if dist.get_rank() == 0:
        torch.save({"version": deepspeed.__version__, **found}, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
