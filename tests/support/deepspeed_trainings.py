"""Trainings under DeepSpeed ZeRO stages 1, 2 and 3 on CPUs; launched by tests/distributed/test_deepspeed.py."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM

from support.arrangements import next_token_loss
from support.leaving import leave_together
from support.sharded_trainings import CASES, UNEQUAL, UNEQUAL_SETTINGS, as_gpus, save_for_all, trained, with_callback
from support.tiny import arguments

STAGES = (1, 2, 3)
# Those without settings of FSDP.
NAMES = [name for name, case in CASES.items() if not case.fsdp]
FEW = ("root group", "wrapped with the last norm", "tied", "LoRA", "perturbed", "centered")
# Stage 3 gathers the parts of a layer with an adapter on their own.
ADAPTED = ("LoRA at the head", "perturbed, LoRA at the layer")
EVERYTHING = "everything"
CONFIGURED = "configured"  # by a file of accelerate
REFUSED = ("hessian", "gauss_newton", "dense")
FIRST = "wrapped with the last norm"
AUTO = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")


def configuration(stage: int) -> dict[str, Any]:
    """In stage 3 every weight is split, however small."""
    more = {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": {"stage": stage, **(more if stage == 3 else {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        **dict.fromkeys(AUTO, "auto"),
    }


def under(stage: int) -> dict[str, Any]:
    return {"deepspeed": configuration(stage)}


def in_float32() -> None:
    """ZeRO keeps its copy of the weights in float32."""
    for name in NAMES:
        CASES[name] = dataclasses.replace(CASES[name], double=False)


def resumed(folder: Path, stage: int, processes: int) -> float:
    """The difference that resuming from the newest checkpoint, at step 3, makes; the optimizer has a state."""
    name, settings = "tied", {"optim": "adamw_torch", "adam_epsilon": 1e-3, "save_strategy": "steps", "save_steps": 3}
    whole_training = trained(folder, name, processes, sharded=False, **settings, **under(stage))
    again = trained(folder, name, processes, sharded=False, resume_from_checkpoint=True, **settings, **under(stage))
    return float((again["weights"] - whole_training["weights"]).norm())


def loaded(folder: Path, stage: int, processes: int) -> dict[str, Any]:
    """A model that transformers splits while it loads it, because the arguments are there already."""
    save_for_all(CASES[FIRST].model().float(), folder / "model")
    args = arguments(folder / "arguments", **under(stage))
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    del args
    model.loss_function = next_token_loss
    assert (stage == 3) == any(hasattr(weight, "ds_id") for weight in model.parameters())
    CASES["loaded"] = dataclasses.replace(CASES[FIRST], model=lambda: model)
    return trained(folder, "loaded", processes, sharded=False, **under(stage))


def refusal(train: Callable[[], Any]) -> str:
    """The message, before the first step."""
    try:
        train()
    except ValueError as error:
        return str(error)
    return "not refused"


def main(folder: Path, *names: str) -> None:
    import deepspeed  # which is not always installed, and doctests import this module

    torch.set_num_threads(1)
    # Its own kernel for processes of one machine takes minutes to compile; gloo does the same.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    as_gpus(True)
    in_float32()
    processes = int(os.environ["WORLD_SIZE"])
    found: dict[Any, Any] = {"version": deepspeed.__version__}

    def train(name: str, stage: int, **given: Any) -> dict[str, Any]:
        return trained(folder, name, processes, sharded=False, **given, **under(stage))

    if CONFIGURED in names:
        found[CONFIGURED] = trained(folder, FIRST, processes, sharded=False, bf16=True)
    for stage in STAGES if CONFIGURED not in names else ():
        for name in NAMES if EVERYTHING in names else names:
            if stage < 3 or name not in ADAPTED:
                found[stage, name] = train(name, stage)
        if EVERYTHING in names:
            found[stage, "unequal"] = train(UNEQUAL, stage, **UNEQUAL_SETTINGS)
            found[stage, "bfloat16"] = train(FIRST, stage, bf16=True)
            found[stage, "plain"] = train(FIRST, stage, fam_lambda=0.0)
            found[stage, "resumed"] = resumed(folder / f"resumed{stage}", stage, processes)
            found[stage, "loaded"] = loaded(folder / f"loaded{stage}", stage, processes)
            found[stage, "callback"] = with_callback(folder / "callback", processes, torch.float32, **under(stage))
            for kind in REFUSED:
                found[stage, kind] = refusal(lambda kind=kind, stage=stage: train(FIRST, stage, fam_estimator=kind))
    if EVERYTHING in names:
        for name in ADAPTED:
            found[3, name] = refusal(lambda name=name: train(name, 3))
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
