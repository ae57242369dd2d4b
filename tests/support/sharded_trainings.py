"""Trainings under FSDP2 and DistributedDataParallel; launched by tests/distributed/test_sharded_trainer.py."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM, Trainer, TrainerCallback
from transformers.distributed import DistributedConfig

from hf_fam import FAMCallback, FAMTrainer, RelativeFlatness, attach
from support.arrangements import BLOCK, DOWN, bert, llama, next_token_loss
from support.leaving import leave_together
from support.tiny import arguments, classified, logged, plain_arguments, texts, tiny_llama

FSDP: dict[str, Any] = {"fsdp": True}
LARGE = 5_000


@dataclass
class Case:
    """A model, its data and settings.

    Attributes:
        fsdp: further settings of FSDP.
    """

    model: Callable[[], nn.Module]
    settings: dict[str, Any]
    data: Callable[[int], list[dict[str, Any]]] = texts
    fsdp: dict[str, Any] = field(default_factory=dict)
    double: bool = True


def tied() -> nn.Module:
    return eager(tiny_llama(tie_word_embeddings=True))


def large() -> nn.Module:
    return eager(tiny_llama(vocab_size=LARGE))


def eager(model: nn.Module) -> nn.Module:
    model.loss_function = next_token_loss
    return model


def with_lora(*more: str, saved: Sequence[str] = ()) -> nn.Module:
    """A frozen base with adapters, which get weights that are not zero.

    Args:
        more: layers that get an adapter, too.
        saved: layers that are trained as a whole.
    """
    config = LoraConfig(r=2, target_modules=["q_proj", *more], modules_to_save=[*saved], task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


def head_alone() -> nn.Module:
    """Only the head and its bias are trained, so the features are centered by default."""
    model = bert()
    for weight in model.bert.parameters():
        weight.requires_grad_(False)
    return model


PERTURBED = {"fam_estimator": "perturbation", "fam_lambda": 0.5}
CASES = {
    "root group": Case(bert, {"fam_lambda": 200.0}, classified),
    "wrapped with the last norm": Case(llama, {"fam_lambda": 20.0}),
    "resharded": Case(llama, {"fam_lambda": 20.0}, fsdp={"reshard_after_forward": True}),
    "not resharded": Case(llama, {"fam_lambda": 20.0}, fsdp={"reshard_after_forward": False}),
    "tied": Case(tied, {"fam_lambda": 20.0}),
    "smoothed": Case(llama, {"fam_lambda": 20.0, "fam_smoothing": 0.1}),
    "large": Case(large, {"fam_lambda": 0.5}),
    "large, tied": Case(lambda: eager(tiny_llama(vocab_size=LARGE, tie_word_embeddings=True)), {"fam_lambda": 0.5}),
    "LoRA": Case(lambda: with_lora("down_proj"), {"fam_lambda": 20.0}),
    "LoRA, head trained as a whole": Case(lambda: with_lora(saved=["lm_head"]), {"fam_lambda": 20.0}),
    "LoRA at the head": Case(lambda: with_lora("lm_head"), {"fam_lambda": 2.0}),
    "offloaded": Case(llama, {"fam_lambda": 20.0}, fsdp={"cpu_offload": True}),
    "centered": Case(head_alone, {"fam_lambda": 200.0}, classified),
    "accumulated": Case(llama, {"fam_lambda": 20.0, "gradient_accumulation_steps": 2}),
    "checkpointed": Case(llama, {"fam_lambda": 20.0}, fsdp={"activation_checkpointing": True}),
    "perturbed": Case(llama, {**PERTURBED, "fam_layer": DOWN}),
    "perturbed, checkpointed": Case(llama, {**PERTURBED, "fam_layer": DOWN}, fsdp={"activation_checkpointing": True}),
    "perturbed, centered": Case(
        bert, {**PERTURBED, "fam_layer": BLOCK, "fam_center": True, "fam_lambda": 50.0}, classified
    ),
    "perturbed, auto": Case(llama, {"fam_layer": "representation", "fam_lambda": 0.5}),
    "perturbed, LoRA at the layer": Case(lambda: with_lora("down_proj"), {**PERTURBED, "fam_layer": DOWN}),
    "perturbed, offloaded": Case(llama, {**PERTURBED, "fam_layer": DOWN}, fsdp={"cpu_offload": True}),
    "another loss": Case(bert, {"fam_lambda": 0.5, "label_smoothing_factor": 0.1}, classified),
}
EQUAL = "equal"  # all cases
MORE = "more"  # what has no counterpart in one process

FAULTS = ("raising", "killed")
TENSOR_LOOPS = ("tensor, attach", "tensor, RelativeFlatness")
REFUSED = (*TENSOR_LOOPS, "tensor", "version 1", "hessian", "gauss_newton", "dense")
COUNTED = ("wrapped with the last norm", "centered", "perturbed")
# torch's CommDebugMode fails in BERT, which adds in place to what its backward hooks returned.
DEBUGGED = ("wrapped with the last norm", "perturbed")
# The last batch of an epoch has four items, and an accumulation ends early.
UNEQUAL = "wrapped with the last norm"
UNEQUAL_SETTINGS = {"items": 20, "gradient_accumulation_steps": 2, "max_steps": 7}


class Collectives(TorchDispatchMode):
    """Records every exchange between processes: its kind, and how many numbers this process gives.

    torch's CommDebugMode counts the kinds alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional") and "wait" not in function.name():
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.numbers.append((function.name(), min(tensor.numel() for tensor in tensors) if tensors else 0))
        return function(*args, **(kwargs or {}))


class CommunicationDebugger(TrainerCallback):
    """Keeps torch's own count of what was exchanged in the third step, by kind.

    CommDebugMode registers backward hooks on all modules. With FSDP it fails if it stays on for two steps.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.mode = CommDebugMode()
            self.mode.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.mode.__exit__(None, None, None)
            self.counts = {str(kind): count for kind, count in self.mode.get_comm_counts().items()}


class Watch(TrainerCallback):
    """Keeps what was exchanged in the third step, and the weights at the end, whole."""

    def __init__(self, collectives: Collectives | None) -> None:
        self.collectives = collectives

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = len(self.collectives.numbers) if self.collectives else 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.collectives and state.global_step == 3:
            self.in_a_step = self.collectives.numbers[self.begin :]

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.weights = torch.cat([whole(weight).flatten() for weight in model.parameters() if weight.requires_grad])


def whole(weight: Tensor) -> Tensor:
    if hasattr(weight, "ds_id"):  # DeepSpeed ZeRO stage 3
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def fsdp_settings(case: Case) -> dict[str, Any]:
    block = "BertLayer" if case.data is classified else "LlamaDecoderLayer"
    return {**FSDP, "fsdp_config": {"transformer_layer_cls_to_wrap": [block], **case.fsdp}}


class Fault(TrainerCallback):
    """Ends the last process after two steps, and notes when."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and dist.get_rank() == dist.get_world_size() - 1:
            (self.folder / "time").write_text(str(time.time()))
            if self.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this process has a fault")


def trained(folder: Path, name: str, processes: int, *, sharded: bool, **given: Any) -> dict[str, Any]:
    """Weights, logs and warnings of five steps with eight items each, in however many processes."""
    case = CASES[name]
    model = case.model().to(torch.float64 if case.double else torch.float32)
    settings: dict[str, Any] = {
        "max_steps": 5, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1, **case.settings, **given,
    }  # fmt: skip
    accumulated = settings.get("gradient_accumulation_steps", 1)
    settings.setdefault("per_device_train_batch_size", 8 // processes // accumulated)
    if sharded:
        settings |= fsdp_settings(case)
    collectives, items = Collectives(), settings.pop("items", 40)
    callbacks = [watch := Watch(collectives), *settings.pop("callbacks", [])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = FAMTrainer(
            model=model, args=arguments(folder / name, **settings), train_dataset=case.data(items), callbacks=callbacks
        )
        if trainer.relative_flatness and ("perturb" in name or name == "another loss"):
            trainer.relative_flatness.adapt_to_sharding()  # one matrix for the batch, as in a sharded model
        if sharded and case.fsdp.get("cpu_offload"):  # accelerate would pin the memory, which needs a GPU
            trainer.accelerator.state.fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)
        with collectives:
            trainer.train(resume_from_checkpoint=given.get("resume_from_checkpoint"))
    return {
        "model": type(trainer.model).__name__,
        "estimator": getattr(trainer.relative_flatness, "estimator", None),
        "weights": watch.weights,
        "collectives": getattr(watch, "in_a_step", []),
        "warnings": sorted({str(w.message) for w in caught if w.category is UserWarning}),
        **{key: logged(trainer, key) for key in ("loss", "fam_kappa", "fam_lambda", "fam_grad_ratio", "grad_norm")},
    }


def debugged(folder: Path, name: str, processes: int) -> dict[str, Any]:
    """With torch's CommDebugMode in one step; its counts with the term and without."""
    with_term, plain = CommunicationDebugger(), CommunicationDebugger()
    trained(folder, name, processes, sharded=True, callbacks=[plain], fam_lambda=0.0)
    result = trained(folder, name, processes, sharded=True, callbacks=[with_term])
    return {**result, "with term": with_term.counts, "plain": plain.counts}


def with_callback(folder: Path, processes: int, dtype: torch.dtype, **given: Any) -> dict[str, Any]:
    """The stock Trainer with FAMCallback."""
    settings = {"max_steps": 5, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1}
    args = plain_arguments(folder, **settings, per_device_train_batch_size=8 // processes, **given)
    watch = Watch(None)
    callbacks = [FAMCallback(fam_lambda=20.0), watch]
    trainer = Trainer(model=llama().to(dtype), args=args, train_dataset=texts(), callbacks=callbacks)
    trainer.train()
    return {"weights": watch.weights, "fam_kappa": logged(trainer, "fam_kappa")}


def resumed(folder: Path, processes: int, kind: str) -> float:
    """The difference that resuming from the checkpoint at step 3 makes; the optimizer has a state."""
    CASES[kind] = dataclasses.replace(CASES["wrapped with the last norm"], fsdp={"state_dict_type": kind})
    name, settings = kind, {"optim": "adamw_torch", "adam_epsilon": 1e-3, "save_strategy": "steps", "save_steps": 3}
    whole_training = trained(folder, name, processes, sharded=True, **settings)
    checkpoint = str(folder / name / "checkpoint-3")
    again = trained(folder, name, processes, sharded=True, resume_from_checkpoint=checkpoint, **settings)
    return float((again["weights"] - whole_training["weights"]).norm())


def save_for_all(model: Any, folder: Path) -> None:
    """Save in process 0, and let no process load before that is done."""
    state = PartialState()
    if state.is_main_process:
        model.save_pretrained(folder)
    state.wait_for_everyone()


def loaded_sharded(folder: Path, processes: int) -> dict[str, Any]:
    """A model that transformers shards when it loads it; on CPUs, too."""
    as_gpus(False)
    name = "wrapped with the last norm"
    save_for_all(CASES[name].model().double(), folder / "model")
    model = LlamaForCausalLM.from_pretrained(
        folder / "model", distributed_config=DistributedConfig(fsdp_size=processes), dtype=torch.float64
    )
    model.loss_function = next_token_loss
    CASES["loaded sharded"] = dataclasses.replace(CASES[name], model=lambda: model)
    return trained(folder, "loaded sharded", processes, sharded=False)


def refusal(folder: Path, kind: str, processes: int) -> str:
    """The message about a kind of parallelism, before anything is trained."""
    model, settings = llama(), {}
    as_gpus(True)
    if kind.startswith("tensor"):
        save_for_all(model, folder / "split")
        model = LlamaForCausalLM.from_pretrained(
            folder / "split", distributed_config=DistributedConfig(tp_size=processes, tp_plan="auto")
        )
        if kind in TENSOR_LOOPS:
            return refusal_in_a_loop(model.train(), kind)
    elif kind == "version 1":
        settings = {**FSDP, "fsdp_config": {"version": 1, "sync_module_states": False}}
    else:
        settings = {**FSDP, "fam_estimator": kind}
    try:
        FAMTrainer(model=model, args=arguments(folder, **settings), train_dataset=texts())
    except ValueError as error:
        return str(error)
    return "not refused"


def refusal_in_a_loop(model: nn.Module, kind: str) -> str:
    """The message about a model that transformers splits by tensor parallelism, in its first forward pass."""
    tokens = torch.arange(10).reshape(2, 5)
    try:
        if kind == "tensor, attach":
            attach(model, 0.5)
            model(input_ids=tokens)
        else:
            with RelativeFlatness(model).capture(0.5):
                model(input_ids=tokens)
    except ValueError as error:
        return str(error)
    return "not refused"


def as_gpus(yes: bool) -> None:
    """Choose whether accelerate takes these processes for GPUs, which it shards over."""
    os.environ["CPUS_AS_GPUS"] = "1" if yes else ""


def main(folder: Path, *names: str) -> None:
    torch.set_num_threads(1)
    found: dict[Any, Any] = {}
    processes = int(os.environ["WORLD_SIZE"])
    if names[0] in FAULTS:
        trained(folder, COUNTED[0], processes, sharded=True, callbacks=[Fault(folder, names[0])])
    if MORE in names:
        found["refused"] = {kind: refusal(folder, kind, processes) for kind in REFUSED}
    if EQUAL in names:
        for name in CASES:
            for sharded in (False, True):
                as_gpus(sharded)
                found[name, sharded] = trained(folder, name, processes, sharded=sharded)
        found["unequal"] = trained(folder, UNEQUAL, processes, sharded=True, **UNEQUAL_SETTINGS)
        CASES["bfloat16"] = dataclasses.replace(CASES["wrapped with the last norm"], double=False)
        found["bfloat16"] = trained(folder, "bfloat16", processes, sharded=True, bf16=True)
    if MORE in names:
        for case in COUNTED:
            found["plain", case] = trained(folder, case, processes, sharded=True, fam_lambda=0.0)
        for case in DEBUGGED:
            found["debugged", case] = debugged(folder, case, processes)
        for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
            found["resumed", kind] = resumed(folder / kind, processes, kind)
        given = fsdp_settings(CASES["wrapped with the last norm"])
        found["callback"] = with_callback(folder / "callback", processes, torch.float64, **given)
        found["loaded sharded"] = loaded_sharded(folder, processes)
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
