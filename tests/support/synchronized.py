"""Steps in every way in which DistributedDataParallel is used; imported and launched by tests/distributed."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_fam import FAMTrainer, RelativeFlatness
from support.leaving import leave_together
from support.tiny import GradientRecorder, arguments, classified, tiny_bert

HEAD = {"fam_lambda": 200.0, "fam_estimator": "closed_form"}
POOLER = {"fam_lambda": 50.0, "fam_layer": "representation"}
BLOCK = {"fam_lambda": 500.0, "fam_layer": "bert.encoder.layer.0.output.dense", "fam_estimator": "hessian"}
TERMS = {
    "closed form": HEAD,
    "Gauss-Newton": {**POOLER, "fam_estimator": "gauss_newton"},
    "Hessian of a block": BLOCK,
    "perturbation": {**POOLER, "fam_lambda": 0.5, "fam_estimator": "perturbation"},
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unused parameters": {"ddp_find_unused_parameters": True},
    "checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation, synchronized each time": {
        "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2, "sync_each_batch": True}}
    },
    "frozen": {},
    "LoRA": {},
    "small buckets": {"ddp_bucket_cap_mb": 0},
}


def model_for(way: str) -> nn.Module:
    model = tiny_bert(dropout=0.0)
    model.set_attn_implementation("eager")
    if way == "unused parameters":
        model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    if way == "frozen":
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.layer[0].attention.requires_grad_(False)
        model.classifier.bias.requires_grad_(False)
    if way == "LoRA":
        from peft import LoraConfig, get_peft_model

        targets = ["query", "value"]
        model = get_peft_model(model, LoraConfig(target_modules=targets, modules_to_save=["classifier"], r=2))
        for name, parameter in model.named_parameters():  # peft starts B at zero, where A has no gradient
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.1)
    return model.double()


def steps(path: Path, way: str, term: dict[str, Any], batch: int, **given: Any) -> list[dict[str, Tensor]]:
    """What the optimizer gets in two steps."""
    model, recorder = model_for(way), GradientRecorder()
    term = dict(term)
    if way == "LoRA" and "fam_layer" in term:
        term["fam_layer"] = term["fam_layer"].replace("bert.", "base_model.model.bert.")
    if way == "LoRA" and term.get("fam_layer") == "representation":
        term["fam_layer"] = "base_model.model.bert.pooler.dense"
    settings = {**WAYS[way], **term, "max_steps": 2, "max_grad_norm": 0.0, **given}
    args = arguments(path, per_device_train_batch_size=batch // (2 if "accumulation" in way else 1), **settings)
    trainer = FAMTrainer(model=model, args=args, train_dataset=classified(16), callbacks=[recorder])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ignores num_items_in_batch")
        trainer.train()
    return recorder.steps


def reductions(estimator: str, layer: str) -> dict[str, int]:
    """How often DistributedDataParallel reduces a bucket: while kappa is computed, and in the backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    wrapped = nn.parallel.DistributedDataParallel(model)
    count = {"n": 0}

    def average(state, bucket):  # DistributedDataParallel checks annotations
        count["n"] += 1
        return (
            torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future().then(lambda f: f.value()[0])
        )

    wrapped.register_comm_hook(None, average)
    flatness = RelativeFlatness(wrapped, layer, estimator)
    found = {"kappa": 0, "backward": 0, "plain": 0}
    for _ in range(3):
        wrapped.zero_grad()
        count["n"] = 0
        with flatness.capture(0.1):
            loss = nn.functional.cross_entropy(wrapped(torch.randn(8, 4)), torch.randint(3, (8,)))
        kappa = flatness(loss)
        found["kappa"] += count["n"]
        (loss + 0.1 * kappa).backward()
        found["backward"] += count["n"]
        count["n"] = 0
        nn.functional.cross_entropy(wrapped(torch.randn(8, 4)), torch.randint(3, (8,))).backward()
        found["plain"] += count["n"]
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[Any, Any] = {"processes": Accelerator(cpu=True).num_processes}
    for way in WAYS:
        for name, term in TERMS.items():
            found[way, name] = steps(folder, way, term, 4)
    for estimator, layer in (("closed_form", "head"), ("hessian", "0"), ("gauss_newton", "2"), ("perturbation", "2")):
        found["reductions", estimator] = reductions(estimator, layer)
    accelerator = Accelerator(cpu=True)
    torch.save(found, folder / f"{accelerator.process_index}.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
