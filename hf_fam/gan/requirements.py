"""What WGAN training cannot work with, refused before anything is trained."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from ..processes.decisions import refuse_unconnected_processes
from .networks import in_evaluation_mode, samples_of
from .penalty import one_value_a_sample, refuse_coupled_samples
from .training_args import WGANTrainingArguments


def check_settings(args: WGANTrainingArguments) -> None:
    """Refuse settings of the Trainer that do not go with two networks or with second derivatives.

    Raises:
        ValueError: names the setting and the remedy.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process mean torch.nn.DataParallel, which splits the batch out of sight: start "
            "with `accelerate launch` or `torchrun` (one process per GPU), or set CUDA_VISIBLE_DEVICES to one of them."
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
            "gradient_checkpointing=True is a switch of transformers' models: call torch.utils.checkpoint with "
            "use_reentrant=False inside your networks, and leave this at False."
        )
    if args.fp16_full_eval or args.bf16_full_eval:
        raise ValueError("full half-precision evaluation would convert the networks for good: leave it off.")
    if args.eval_emd and importlib.util.find_spec("scipy") is None:
        raise ValueError("eval_emd=True needs scipy: pip install 'hf-fam[gan]', or leave it off.")


def refuse_keywords(given: dict[str, Any]) -> None:
    """Refuse keywords of the Trainer that are for one model.

    Raises:
        ValueError: names the keyword and what to do instead.
    """
    remedies = {
        "model": "give generator and critic",
        "model_init": "give generator and critic",
        "compute_loss_func": "override compute_loss",
        "optimizers": "give optim and the critic_* and generator_* settings in the arguments, or override "
        "create_optimizer",
    }
    for name in given.keys() & remedies:
        raise ValueError(f"{name} has no meaning for two networks: {remedies[name]}.")


def refuse_sharding(trainer: Any) -> None:
    """Refuse FSDP and DeepSpeed also where a configuration of accelerate asks for them; args do not tell.

    Raises:
        ValueError: with the remedy.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "FSDP and DeepSpeed shard weights, and the critic's are needed a second time, inside its gradient: use "
            "DistributedDataParallel (recipes/accelerate_configs/ddp.yaml)."
        )


def latent_size_of(generator: nn.Module, given: int | None) -> int:
    """The size of a latent code: what was given, or an attribute of the generator or its config.

    Raises:
        ValueError: it is nowhere to be found.
    """
    config = getattr(generator, "config", None)
    for size in (given, getattr(generator, "latent_size", None), getattr(config, "latent_size", None)):
        if size is not None:
            return int(size)
    raise ValueError(
        f"latent_size is unknown: give latent_size= in the arguments, or {type(generator).__name__} an attribute "
        "`latent_size`."
    )


def check_networks(generator: nn.Module, critic: nn.Module, latents: Tensor, real: Tensor) -> None:
    """Try both networks on two samples, without changing them or drawing random numbers.

    Args:
        generator: the generator.
        critic: the critic.
        latents: two latent codes.
        real: real samples, of shape (n, ...).

    Raises:
        ValueError: the critic has batch normalization, the latent codes do not fit, or the generated samples do not
            have the shape of the real ones.
    """
    refuse_coupled_samples(critic)
    size = latents.shape[1]
    with torch.random.fork_rng(), in_evaluation_mode(generator), in_evaluation_mode(critic):
        try:
            generated = samples_of(generator(latents))
        except RuntimeError as error:
            raise ValueError(
                f"latent_size={size}: the generator fails on latent codes of shape (2, {size}): {error}. Give the "
                "latent_size that it was built for; if it takes another shape, begin it with torch.nn.Unflatten."
            ) from error
        if generated.shape != (2, *real.shape[1:]):
            raise ValueError(
                f"the generator makes samples of shape {tuple(generated.shape[1:])}, the real ones of train_dataset "
                f"have {tuple(real.shape[1:])}: bring them to one shape."
            )
        for samples, kind in ((generated, "generated"), (real[:2], "real")):
            try:
                values = critic(samples)
            except RuntimeError as error:
                raise ValueError(
                    f"the critic fails on {kind} samples of shape {tuple(samples.shape)}: {error}"
                ) from error
            one_value_a_sample(values, len(samples), "critic")


def check_finite(networks: nn.Module, step: int) -> None:
    """Keep diverged weights out of a checkpoint.

    Raises:
        FloatingPointError: naming the weight.
    """
    for name, weight in networks.named_parameters():
        if not bool(weight.isfinite().all()):
            raise FloatingPointError(
                f"'{name}' is not finite after step {step}, which is not saved: most likely the training diverged. "
                "Lower the learning rates or penalty_lambda; the last checkpoint is usable (resume_from_checkpoint)."
            )


def first_batch(collate: Any, dataset: Any) -> Any:
    """What the collator makes of the first two items, or None where the data set cannot be looked into."""
    try:
        count = len(dataset)
    except TypeError:
        return None
    if count == 0:
        raise ValueError("train_dataset is empty: give at least one sample.")
    return collate([dataset[k % count] for k in range(2)])
