"""Refuse settings and networks that WGAN training does not support, before it starts."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from ..processes.checkpoints import resume_hint
from ..processes.compiling import compiling_setting
from ..processes.decisions import refuse_unconnected_processes
from .networks import in_evaluation_mode, samples_of
from .penalty import one_value_per_sample, refuse_coupled_samples
from .sample_grid import is_image
from .training_args import WGANTrainingArguments

# Items of the data set that are checked before training.
_SHOWN = 16
# Ranges of last modules, and how to scale samples from 0 to 255 to them.
_BOUNDED: dict[type[nn.Module], tuple[float, float]] = {nn.Tanh: (-1, 1), nn.Sigmoid: (0, 1)}
_SCALING: dict[type[nn.Module], str] = {nn.Tanh: " (x / 127.5 - 1)", nn.Sigmoid: " (x / 255)"}


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


def latent_size_of(generator: nn.Module, argument: int | None) -> int:
    """Return the size of a latent code.

    It is the argument, or an attribute of the generator or of its config.

    Raises:
        ValueError: the size is unknown.
    """
    config = getattr(generator, "config", None)
    for size in (argument, getattr(generator, "latent_size", None), getattr(config, "latent_size", None)):
        if size is not None:
            return int(size)
    raise ValueError(
        f"latent_size is unknown: give latent_size= in the arguments, or {type(generator).__name__} an attribute "
        "`latent_size`."
    )


def check_networks(generator: nn.Module, critic: nn.Module, latents: Tensor, real: Tensor) -> None:
    """Try both networks on two samples.

    The networks and the random state do not change.

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
                f"latent_size={size}: the generator fails on latent codes of shape (2, {size}): {error}. Give its own "
                "latent_size. If it takes another shape, put torch.nn.Unflatten in front."
            ) from error
        if generated.shape != (2, *real.shape[1:]):
            raise ValueError(
                f"the generator makes samples of shape {tuple(generated.shape[1:])}, the real ones of train_dataset "
                f"have {tuple(real.shape[1:])}: give both one shape."
            )
        for samples, kind in ((generated, "generated"), (real[:2], "real")):
            try:
                values = critic(samples)
            except RuntimeError as error:
                raise ValueError(
                    f"the critic fails on {kind} samples of shape {tuple(samples.shape)}: {error}"
                ) from error
            one_value_per_sample(values, len(samples), "critic")


def check_range(generator: nn.Module, real: Tensor, low: float, high: float) -> None:
    """Refuse real samples that the generator cannot produce.

    Images may exceed the range of black and white by twice its width, because standardized images do.

    Args:
        generator: the generator. If its last module is a tanh or a sigmoid, its range is known.
        real: real samples, of shape (n, ...).
        low: value of black, for images.
        high: value of white, for images.

    Raises:
        ValueError: the samples are out of range; the message names both ranges.
    """
    least, largest = real.min().item(), real.max().item()
    last = list(generator.modules())[-1]
    for kind, bounds in _BOUNDED.items():
        if isinstance(last, kind) and not bounds[0] - 1e-3 <= least <= largest <= bounds[1] + 1e-3:
            raise ValueError(
                f"train_dataset: the samples have values from {least:.4g} to {largest:.4g}, but the generator ends in "
                f"{kind.__name__}, with values from {bounds[0]} to {bounds[1]}. Scale the samples to that range"
                f"{_SCALING[kind]}, or end the generator without {kind.__name__}."
            )
    margin = 2 * (high - low)
    if is_image(real) and not low - margin <= least <= largest <= high + margin:
        raise ValueError(
            f"train_dataset: the images have values from {least:.4g} to {largest:.4g}, but sample_low={low:g} is black "
            f"and sample_high={high:g} is white. Scale the images to that range, or give theirs as sample_low and "
            "sample_high."
        )


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
