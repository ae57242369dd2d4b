"""Refuse settings that WGAN training does not support, before it starts, and diverged weights."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from ..processes.checkpoints import resume_hint
from ..processes.compiling import compiling_setting
from ..processes.decisions import refuse_unconnected_processes
from .training_args import WGANTrainingArguments

# Items of the data set that are checked before training.
_SHOWN = 16


def check_settings(args: WGANTrainingArguments) -> None:
    """Refuse Trainer settings that do not work with two networks.

    Some do not work with second derivatives.

    Raises:
        ValueError: a setting is not supported; the message names it and says what to do.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process mean torch.nn.DataParallel, which is not supported. Start one process "
            "per GPU with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    refuse_unconnected_processes(args)
    if args.world_size > 1 and args.ddp_find_unused_parameters is False:
        raise ValueError(
            "ddp_find_unused_parameters=False: each step trains one of the two networks, and DistributedDataParallel "
            "would wait for gradients of the other: leave it unset."
        )
    if getattr(args, "ddp_static_graph", None):
        raise ValueError("ddp_static_graph=True: steps of critic and generator differ: set it to False.")
    if args.torch_compile:
        raise ValueError("torch_compile=True: compiled networks cannot be differentiated twice: set it to False.")
    if args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
        raise ValueError(
            "gradient_checkpointing=True works for transformers' models only: set it to False, and call "
            "torch.utils.checkpoint with use_reentrant=False inside your networks."
        )
    if args.fp16_full_eval or args.bf16_full_eval:
        raise ValueError("fp16_full_eval or bf16_full_eval would convert the networks permanently: set both to False.")
    if args.eval_emd and importlib.util.find_spec("scipy") is None:
        raise ValueError("eval_emd=True needs scipy: pip install 'hf-fam[gan]', or set it to False.")


def refuse_keywords(keywords: dict[str, Any]) -> None:
    """Refuse keywords of the Trainer that are for a single model.

    Raises:
        ValueError: there is such a keyword; the message names it and says what to do.
    """
    remedies = {
        "model": "give generator and critic",
        "model_init": "give generator and critic",
        "compute_loss_func": "override compute_loss",
        "optimizers": "give optim and the critic_* and generator_* settings in the arguments, or override "
        "create_optimizer",
    }
    for name in keywords.keys() & remedies:
        raise ValueError(f"{name} does not apply to two networks: {remedies[name]}.")


def refuse_launcher(trainer: Any) -> None:
    """Refuse FSDP, DeepSpeed and compilation.

    The Trainer knows if a configuration of accelerate enables them; the arguments do not.

    Raises:
        ValueError: one of them is enabled; the message says what to do.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "FSDP and DeepSpeed shard weights, but the critic's gradient needs the whole weights again: use "
            "DistributedDataParallel (recipes/accelerate_configs/ddp.yaml)."
        )
    setting = compiling_setting(trainer.args)
    if setting is not None:
        raise ValueError(f"{setting}: compiled networks cannot be differentiated twice: leave it out.")


def check_finite(networks: nn.Module, step: int, output_dir: str) -> None:
    """Refuse diverged weights before they are saved.

    Args:
        networks: both networks.
        step: number of optimizer steps so far.
        output_dir: output folder of the Trainer.

    Raises:
        FloatingPointError: a weight is not finite; the message names it.
    """
    for name, weight in networks.named_parameters():
        if not bool(weight.isfinite().all()):
            raise FloatingPointError(
                f"'{name}' is not finite after step {step}, so it is not saved: the training diverged, or the real "
                "samples contain NaN. Lower the learning rates or penalty_lambda, or correct the samples."
                + resume_hint(output_dir)
            )


def first_batch(collate: Any, dataset: Any) -> Any:
    """Return some collated items, evenly spaced.

    None if the data set has no length.
    """
    try:
        count = len(dataset)
    except TypeError:
        return None
    if count == 0:
        raise ValueError("train_dataset is empty: give at least one sample.")
    shown = max(2, min(count, _SHOWN))
    return collate([dataset[k * count // shown] for k in range(shown)])
