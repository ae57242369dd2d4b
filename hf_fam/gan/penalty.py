"""Penalties on the norm of a critic's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._compat import without_patched_forward
from ..calculus.torch_internals import BatchNorm
from .safe_norm import row_norms

ONE, TWO, ZERO = "one", "two", "zero"
SIDES = (ONE, TWO, ZERO)
HALF = (torch.float16, torch.bfloat16)

Critic = Callable[[Tensor], Any]


def gradient_penalty(critic: Critic, points: Tensor, *, side: str = ONE, target: float = 1.0) -> Tensor:
    """The mean over samples of a penalty on the norm of the critic's gradient by its input.

    With g_i = ||grad f(x_i)||_2, over all dimensions of sample i:

    - ``"one"``: max(0, g_i - target)^2, WGAN-LP (Petzka, Fischer, Lukovnikov, ICLR 2018, arXiv 1709.08894);
    - ``"two"``: (g_i - target)^2, WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028);
    - ``"zero"``: g_i^2, the penalty of R1 and R2 without their factor 1/2 (Mescheder et al. 2018, arXiv 1801.04406).

    Add lambda times it to the critic's loss, mean f(generated) - mean f(real), and go backward once. Where a gradient
    is 0, the norm's derivative is taken as 0.

    The critic is called outside autocast, also where Accelerate has patched autocast into it, and half-precision
    points become float32 unless the critic itself is in half precision. Attention takes the kernel that can be
    differentiated twice.

    Args:
        critic: from points to one number a sample, of shape (n,) or (n, 1, ...), or an object with such ``logits``.
            For a conditional critic give ``lambda x: critic(x, labels)``. Each number may depend on its own sample
            alone: batch normalization is found in a ``torch.nn.Module`` and refused, in other callables it is not.
        points: of shape (n, ...), as a sampler such as `LinePoints` gives them; gradients do not flow into them.
        side: ``"one"``, ``"two"`` or ``"zero"``.
        target: the norm to stay below (or at), in units of the critic's output per unit of its input. ``"zero"`` has
            none.

    Returns:
        A scalar, in the graph of the critic's parameters where gradients are enabled.

    Raises:
        ValueError: the critic has batch normalization, its output does not fit or does not depend on the points, or an
            argument is out of range.

    Examples:
        >>> from hf_fam.gan import LinePoints
        >>> critic = torch.nn.Linear(2, 1)
        >>> _ = critic.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> real, fake = torch.randn(8, 2), torch.randn(8, 2)
        >>> gradient_penalty(critic, LinePoints()(real, fake)).item()  # (5 - 1)^2
        16.0
    """
    check_penalty(side, target)
    return penalty_of_norms(gradient_norms(critic, points), side, target)


def check_penalty(side: str, target: float) -> None:
    """Refuse a side that does not exist, or a target that it cannot have.

    Raises:
        ValueError: naming the argument.
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r}: give one of {', '.join(map(repr, SIDES))}.")
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f'target={target!r}: give a positive number; side="zero" is the penalty without a target.')
    if side == ZERO and target != 1.0:
        raise ValueError(f'target={target!r} has no meaning with side="zero", which penalizes every gradient.')


def penalty_of_norms(norms: Tensor, side: str, target: float) -> Tensor:
    """The mean penalty of norms that were computed by `gradient_norms`."""
    excess = norms if side == ZERO else norms - target
    if side == ONE:
        excess = excess.relu()
    return excess.square().mean()


def gradient_norms(critic: Critic, points: Tensor) -> Tensor:
    """The norm of the critic's gradient at each point; ``max() - 1`` of it is how far the critic is from 1-Lipschitz.

    Args:
        critic: as for `gradient_penalty`.
        points: of shape (n, ...).

    Returns:
        Of shape (n,); in the graph of the critic's parameters where gradients are enabled.

    Raises:
        ValueError: as for `gradient_penalty`.

    Examples:
        >>> gradient_norms(lambda x: x.square().sum(1) / 2, torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [5.0, 0.0]
    """
    if not points.is_floating_point() or points.ndim < 2 or len(points) == 0:
        raise ValueError(
            f"points of shape {tuple(points.shape)} and type {points.dtype}: give floating-point samples of shape "
            "(n, ...), at least one; single numbers as (n, 1)."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode() allows no gradient, not even by the points: use torch.no_grad() here.")
    refuse_coupled_samples(critic)
    differentiable = torch.is_grad_enabled()
    with (
        torch.enable_grad(),
        torch.autocast(points.device.type, enabled=False),
        without_patched_forward([module for _, module in _modules(critic)]),
        sdpa_kernel(SDPBackend.MATH),
    ):
        inputs = critic_inputs(critic, points).requires_grad_()
        values = one_value_a_sample(critic(inputs), len(inputs), "critic")
        gradient = None
        if values.requires_grad:
            total = values.double().sum() if values.dtype in HALF else values.sum()
            (gradient,) = torch.autograd.grad(total, inputs, create_graph=differentiable, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "the critic's output does not depend on the points through differentiable operations: it is a "
                "constant, or detached (no_grad, .detach(), .item()) inside the critic."
            )
        return row_norms(gradient)


def one_value_a_sample(output: Any, samples: int, what: str) -> Tensor:
    """The output of a critic or scorer, as (n,).

    Raises:
        ValueError: it is not one number a sample.
    """
    values = getattr(output, "logits", output)
    if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != samples or values.numel() != samples:
        given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        raise ValueError(
            f"the {what} gave {given} for {samples} samples: it has to give one number a sample, of shape ({samples},) "
            f"or ({samples}, 1). Average patches or choose a class in a function around it."
        )
    return values.reshape(samples)


def refuse_coupled_samples(critic: Critic) -> None:
    """Refuse batch normalization by the statistics of the batch.

    Raises:
        ValueError: naming the module.
    """
    for name, module in _modules(critic):
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"critic: '{name or type(module).__name__}' is batch normalization ({type(module).__name__}). It makes "
                "each sample's value depend on the other samples of the batch, so there is no gradient by one sample "
                "to penalize. Use layer, group or instance normalization, or none, in the critic; the generator may "
                "keep its own."
            )


def critic_inputs(critic: Critic, points: Tensor) -> Tensor:
    """The points without their graph, in the type of the critic's parameters."""
    # What was made in inference mode can be in no graph, but a copy can.
    points = points.clone() if points.is_inference() else points.detach()
    return points.to(_working_type(critic, points))


def _modules(critic: Critic) -> list[tuple[str, nn.Module]]:
    module = critic if isinstance(critic, nn.Module) else getattr(critic, "__self__", None)
    return list(module.named_modules()) if isinstance(module, nn.Module) else []


def _working_type(critic: Critic, points: Tensor) -> torch.dtype:
    """Of the critic's parameters, or float32 for points in half precision where there are none to look at."""
    for _, module in _modules(critic):
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.float32 if points.dtype in HALF else points.dtype
