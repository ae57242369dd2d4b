"""Training settings that FAM cannot work with, refused before anything is trained."""

from __future__ import annotations

from typing import Any

from ..flatness.estimators import ActsIn
from ..flatness.relative_flatness import RelativeFlatness
from ..processes.decisions import refuse_unconnected_processes

_SHARDED = (
    "FSDP and DeepSpeed ZeRO stage 3 shard the feature layer's weight, whose gradient would be lost outside the "
    "forward pass: use DistributedDataParallel or ZeRO stage 1 or 2; or, in a loop of your own, "
    "hf_fam.attach, which works inside torch's fully_shard (docs/distributed.md)."
)

# What only the first step can show.
NEVER_REACHED = (
    "The flatness term did not enter the first step, though fam_lambda is above 0: {trainer} computes its loss without "
    "FAMMixin.compute_loss, or with the model in evaluation mode. If a class of yours overrides compute_loss, put the "
    "mixin in front of it, `class MyFAMTrainer(FAMMixin, MyTrainer)`; if it has a loop of its own, use "
    "RelativeFlatness or attach in it; fam_lambda=0 is plain training."
)


def refuse_parallelism(trainer: Any) -> None:
    """Refuse what only a Trainer knows: ways of sharing one model, or one batch, between processes.

    Args:
        trainer: the ``Trainer``.

    Raises:
        ValueError: names the setting and the remedy.
    """
    if getattr(trainer, "is_fsdp_enabled", False):  # by a configuration of accelerate; args.fsdp does not tell
        raise ValueError(_SHARDED)
    for name, kind in (("tp", "tensor"), ("cp", "context"), ("sp", "sequence")):
        size = getattr(trainer, f"get_{name}_size", lambda: 1)()
        if size > 1:
            raise ValueError(
                f"{kind} parallelism ({name}_size={size}) splits the layer or the batch between processes in ways that "
                "FAM cannot see: use DistributedDataParallel."
            )


def check_requirements(args: Any, flatness: RelativeFlatness) -> None:
    """Refuse settings under which the term would be wrong, unsynchronized or impossible.

    Args:
        args: the ``TrainingArguments``.
        flatness: layer and estimator that were chosen.

    Raises:
        ValueError: names the setting and the remedy.
    """
    refuse_split_models(args)
    if getattr(args, "ddp_static_graph", None):
        raise ValueError(
            "ddp_static_graph=True leaves gradients unsynchronized, without an error, when the loss is differentiated "
            "more than once, or a first batch is looked at: set it to False."
        )
    if args.torch_compile and flatness.method.acts_in is not ActsIn.FORWARD_PASS:
        raise ValueError(
            f"torch_compile=True compiles the whole model, which cannot be differentiated twice, and fam_estimator="
            f'"{flatness.estimator}" needs that: for the head use Trainer with callbacks=[FAMCallback(fam_lambda=...)] '
            f'(or hf_fam.attach), which work in compiled models; or fam_estimator="perturbation"; or set '
            "torch_compile=False and compile the backbone alone (model.base_model.compile())."
        )
    liger = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False) and liger.get("fused_linear_cross_entropy", True):
        raise ValueError(
            "use_liger_kernel=True fuses the head with the loss, so that neither logits nor second derivatives exist: "
            'set liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False}, or '
            "use_liger_kernel=False."
        )


def refuse_split_models(args: Any) -> None:
    """Refuse what takes the model apart, or computes its loss in a way that cannot be seen.

    Args:
        args: the ``TrainingArguments``.

    Raises:
        ValueError: names the setting and the remedy.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process mean torch.nn.DataParallel, whose replicas FAM cannot see: start with "
            "`accelerate launch` or `torchrun` (one process per GPU), or set CUDA_VISIBLE_DEVICES to one of them."
        )
    refuse_unconnected_processes(args)
    if args.fsdp or _is_zero3(args):
        raise ValueError(_SHARDED)
    temperature = getattr(args, "temperature", 1.0)
    if temperature != 1.0:
        raise ValueError(
            f"temperature={temperature!r}: TRL's trainers divide the logits by it out of sight, so kappa would be that "
            "of other logits: set it to 1.0."
        )


def _is_zero3(args: Any) -> bool:
    deepspeed = getattr(args, "hf_deepspeed_config", None)
    return deepspeed is not None and deepspeed.is_zero3()
