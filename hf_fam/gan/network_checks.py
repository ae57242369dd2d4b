"""Refuse generators and critics that do not fit each other, the latent codes, the labels or the data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .data import RealBatch
from .networks import call, in_evaluation_mode, samples_of
from .penalty import one_value_per_sample, refuse_coupled_samples
from .sample_grid import is_image

# Ranges of last modules, and how to scale samples from 0 to 255 to them.
_BOUNDED: dict[type[nn.Module], tuple[float, float]] = {nn.Tanh: (-1, 1), nn.Sigmoid: (0, 1)}
_SCALING: dict[type[nn.Module], str] = {nn.Tanh: " (x / 127.5 - 1)", nn.Sigmoid: " (x / 255)"}


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


def check_networks(
    generator: nn.Module, critic: nn.Module, latents: Tensor, real: RealBatch, num_classes: int | None = None
) -> None:
    """Try both networks on two samples.

    The networks and the random state do not change.

    Args:
        generator: the generator.
        critic: the critic.
        latents: two latent codes.
        real: real samples, at least two.
        num_classes: number of classes; None: networks without labels. The networks are tried on the first and the last.

    Raises:
        ValueError: the critic has batch normalization; a network does not take labels or needs them; the latent codes
            or the labels do not fit; or the generated samples do not have the shape of the real ones.
    """
    refuse_coupled_samples(critic)
    labels = None if num_classes is None else torch.tensor([0, num_classes - 1], device=latents.device)
    for name, network in (("generator", generator), ("critic", critic)):
        _check_labels_are_taken(name, network, latents, num_classes)
    size, shape = latents.shape[1], real.samples.shape[1:]
    with torch.random.fork_rng(), in_evaluation_mode(generator), in_evaluation_mode(critic):
        try:
            generated = samples_of(call(generator, latents, labels))
        except (RuntimeError, IndexError) as error:
            _refuse_labels("generator", generator, latents, num_classes, error)
            raise ValueError(
                f"latent_size={size}: the generator fails on latent codes of shape (2, {size}){_with(labels)}: {error}."
                " Give its own latent_size. If it takes another shape, put torch.nn.Unflatten in front."
            ) from error
        if generated.shape != (2, *shape):
            raise ValueError(
                f"the generator makes samples of shape {tuple(generated.shape[1:])}, the real ones of train_dataset "
                f"have {tuple(shape)}: give both one shape."
            )
        for samples, kind in ((generated, "generated"), (real.samples[:2], "real")):
            try:
                values = call(critic, samples, labels)
            except (RuntimeError, IndexError) as error:
                _refuse_labels("critic", critic, samples, num_classes, error)
                raise ValueError(
                    f"the critic fails on {kind} samples of shape {tuple(samples.shape)}{_with(labels)}: {error}"
                ) from error
            one_value_per_sample(values, len(samples), "critic")


def _check_labels_are_taken(name: str, network: nn.Module, inputs: Tensor, num_classes: int | None) -> None:
    """Refuse a network whose forward pass takes no labels where there are some, or the other way round."""
    signature = inspect.signature(network.forward)

    def fits(*arguments: Any) -> bool:
        try:
            signature.bind(*arguments)
        except TypeError:
            return False
        return True

    kind = type(network).__name__
    if num_classes is not None and not fits(inputs, inputs):
        raise ValueError(
            f"num_classes={num_classes}: the {name} ({kind}) does not take labels: give it a "
            f"forward({'latents' if name == 'generator' else 'samples'}, labels), or leave num_classes out."
        )
    if num_classes is None and not fits(inputs) and fits(inputs, inputs):
        raise ValueError(f"the {name} ({kind}) takes labels: give num_classes in the arguments.")


def _refuse_labels(name: str, network: nn.Module, inputs: Tensor, num_classes: int | None, error: Exception) -> None:
    """Refuse the number of classes if the network fails on the last class alone."""
    if num_classes is None:
        return
    try:
        call(network, inputs, torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device))
    except (RuntimeError, IndexError):
        return
    raise ValueError(
        f"num_classes={num_classes}: the {name} fails on label {num_classes - 1} ({error}): give it as many classes, "
        "or another num_classes."
    ) from error


def _with(labels: Tensor | None) -> str:
    return "" if labels is None else f" with labels {labels.tolist()}"


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
