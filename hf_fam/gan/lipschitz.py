"""Lipschitz conditions on a critic that do not differentiate it by its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..calculus.torch_internals import BoundedWeight, Convolution
from .penalty import Critic, critic_inputs, one_value_per_sample, refuse_coupled_samples


def transport_penalty(critic: Critic, real: Tensor, generated: Tensor) -> Tensor:
    """Return the penalty of regularized optimal transport.

    It is the mean over all pairs of max(0, f(x) - f(y) - ||x - y||_2)^2.

    x are the real and y the generated samples. This is the condition of duality, at the samples themselves (Petzka,
    Fischer, Lukovnikov, ICLR 2018, arXiv 1709.08894). First-order gradients are enough.
    Half-precision samples become float32 unless the critic itself is in half precision, as in `gradient_penalty`.

    Args:
        critic: as for `gradient_penalty`; larger on real samples.
        real: of shape (n, ...).
        generated: of shape (k, ...); gradients flow into neither.

    Returns:
        A scalar.

    Raises:
        ValueError: the critic has batch normalization or its output does not fit, or the samples differ in shape.

    Examples:
        >>> transport_penalty(lambda x: 3 * x, torch.tensor([[1.0]]), torch.tensor([[0.0]])).item()  # (3 - 1)^2
        4.0
    """
    if real.shape[1:] != generated.shape[1:] or not len(real) or not len(generated) or real.ndim < 2:
        raise ValueError(
            f"real samples of shape {tuple(real.shape)}, generated of {tuple(generated.shape)}: give (n, ...) and "
            "(k, ...) with the same dimensions behind the first, at least one of each."
        )
    refuse_coupled_samples(critic)
    real, generated = real.detach(), generated.detach()
    with torch.autocast(real.device.type, enabled=False):
        # Distances from inner products lose all digits for close points, so differences are taken directly.
        direct = "donot_use_mm_for_euclid_dist"
        wide = torch.promote_types(torch.promote_types(real.dtype, generated.dtype), torch.float32)
        distance = torch.cdist(real.flatten(1).to(wide), generated.flatten(1).to(wide), compute_mode=direct)
    real_values = one_value_per_sample(critic(critic_inputs(critic, real)), len(real), "critic")
    generated_values = one_value_per_sample(critic(critic_inputs(critic, generated)), len(generated), "critic")
    return (real_values[:, None] - generated_values[None] - distance).relu().square().mean()


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float = 0.01) -> None:
    """Clip every parameter of the critic to [-limit, limit].

    Call it after each step of the critic (Arjovsky et al. 2017).

    This is the baseline that penalties replaced. It keeps the critic Lipschitz, with a constant that depends on the
    network.

    Args:
        critic: changed in place.
        limit: positive.

    Raises:
        ValueError: the limit is not positive.

    Examples:
        >>> critic = nn.Linear(3, 1)
        >>> clip_weights(critic)
        >>> bool(critic.weight.abs().max() <= 0.01)
        True
    """
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit={limit!r}: give a positive number, such as 0.01.")
    for parameter in critic.parameters():
        parameter.clamp_(-limit, limit)


def refuse_unbounded_layers(critic: nn.Module) -> None:
    """Refuse a critic in which a linear or convolutional layer may have any slope.

    A layer is bounded by ``torch.nn.utils.parametrizations.spectral_norm`` (Miyato et al. 2018, arXiv 1802.05957),
    by ``orthogonal`` of the same module, or by the older ``torch.nn.utils.spectral_norm``.

    Raises:
        ValueError: a layer is not bounded; the message names it.
    """
    layers = {name: m for name, m in critic.named_modules() if isinstance(m, (nn.Linear, nn.Bilinear, Convolution))}
    free = [name or type(layer).__name__ for name, layer in layers.items() if not _is_bounded(layer)]
    if free:
        raise ValueError(
            f'penalty="none" without clip_limit does not bound the slope of the critic\'s layer {free[0]!r}. Give a '
            'penalty such as "one", a limit such as clip_limit=0.01, or put '
            "torch.nn.utils.parametrizations.spectral_norm around each of its layers."
        )


def _is_bounded(layer: nn.Module) -> bool:
    if parametrize.is_parametrized(layer, "weight"):
        return any(isinstance(part, BoundedWeight) for part in layer.parametrizations["weight"])  # type: ignore[index]
    return hasattr(layer, "weight_orig") and hasattr(layer, "weight_u")
