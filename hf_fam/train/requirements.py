"""Refuse training settings that do not work with FAM, before the training starts."""

from __future__ import annotations

from typing import Any

from ..flatness.estimators import ActsIn
from ..flatness.relative_flatness import RelativeFlatness
from ..processes.compiling import compiling_setting
from ..processes.decisions import refuse_unconnected_processes

# Only the first step can show this.
MISSING_TERM = (
    "The flatness term did not enter the first step, though fam_lambda is above 0. {trainer} computes its loss without "
    "FAMMixin.compute_loss, or with the model in evaluation mode. If your class overrides compute_loss, put the "
    "mixin in front of it: `class MyFAMTrainer(FAMMixin, MyTrainer)`. If it has its own training loop, use "
    "RelativeFlatness or attach there. For plain training, set fam_lambda=0."
)


def refuse_parallelism(trainer: Any) -> None:
    """Refuse parallelism that splits a model or a batch between processes.

    Args:
        trainer: the ``Trainer``, which alone knows these settings.

    Raises:
        ValueError: names the setting and what to do.
    """
    if is_fsdp(trainer) and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP version 1 is not supported: use version 2 (`accelerate launch --fsdp_version 2`, or "
            'fsdp_config={"version": 2} in the arguments).'
        )
    for name, kind in (("tp", "tensor"), ("cp", "context"), ("sp", "sequence")):
        size = getattr(trainer, f"get_{name}_size", lambda: 1)()
        if size > 1:
            raise ValueError(
                f"{kind} parallelism ({name}_size={size}) is not supported, because it splits the layer or the batch "
                "between processes: use FSDP version 2 or DistributedDataParallel."
            )


def is_fsdp(trainer: Any) -> bool:
    """Return True if accelerate will shard the Trainer's model by FSDP.

    ``args.fsdp`` does not show FSDP from a configuration of accelerate, and accelerate ignores it on CPUs.
    """
    return bool(getattr(trainer, "is_fsdp_enabled", False))


def is_deepspeed(trainer: Any) -> bool:
    """Return True if DeepSpeed will train the Trainer's model."""
    return bool(getattr(trainer, "is_deepspeed_enabled", False))


def describe_sharded_term(flatness: RelativeFlatness, is_deepspeed: bool) -> str:
    """Return the line that says what ``fam_estimator="auto"`` stands for under FSDP or DeepSpeed."""
    way = "in the backward pass" if flatness.method.acts_in is ActsIn.BACKWARD_PASS else "by perturbing its features"
    return (
        f"{'DeepSpeed trains' if is_deepspeed else 'FSDP shards'} the model: the flatness term of "
        f"'{flatness.layer.name}' acts {way} "
        f'(fam_estimator="{flatness.estimator}").'
    )


def check_requirements(args: Any, flatness: RelativeFlatness) -> None:
    """Refuse settings that would make the term wrong, unsynchronized or impossible.

    Args:
        args: the ``TrainingArguments``.
        flatness: the layer and its estimator.

    Raises:
        ValueError: names the setting and what to do.
    """
    refuse_split_models(args)
    if getattr(args, "ddp_static_graph", None):
        raise ValueError(
            "ddp_static_graph=True would leave gradients unsynchronized, because FAM differentiates the loss more than "
            "once: set it to False."
        )
    setting = compiling_setting(args)
    if setting is not None and flatness.method.acts_in is not ActsIn.FORWARD_PASS:
        remedy = "torch_compile=False" if args.torch_compile else "no backend"
        raise ValueError(
            f"{setting} compiles the whole model, which cannot be differentiated twice, but fam_estimator="
            f'"{flatness.estimator}" needs that. For the head, use callbacks=[FAMCallback(fam_lambda=...)] '
            f'(or hf_fam.attach), which work in compiled models; or use fam_estimator="perturbation"; or set '
            f"{remedy} and compile only the backbone (model.base_model.compile())."
        )
    if getattr(args, "activation_offloading", False):
        raise ValueError(
            "activation_offloading=True gives every saved activation back only once, but FAM differentiates the loss "
            "more than once. Set it to False, or use callbacks=[FAMCallback(fam_lambda=...)] for the head."
        )
    liger_config = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False) and liger_config.get("fused_linear_cross_entropy", True):
        raise ValueError(
            "use_liger_kernel=True fuses the head with the loss, which then has no logits and no second derivatives: "
            'set liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False}, or '
            "use_liger_kernel=False."
        )


def refuse_split_models(args: Any) -> None:
    """Refuse settings that split the model or change its logits unseen.

    Args:
        args: the ``TrainingArguments``.

    Raises:
        ValueError: names the setting and what to do.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process use torch.nn.DataParallel, which is not supported. Start one process "
            "per GPU with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    refuse_unconnected_processes(args)
    temperature = getattr(args, "temperature", 1.0)
    if temperature != 1.0:
        raise ValueError(
            f"temperature={temperature!r}: TRL's trainers divide the logits by it after the head, so kappa would be "
            "that of other logits: set it to 1.0."
        )
