"""Penalties on the norm of a critic's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._compat import without_patched_forward
from ..calculus.torch_internals import BatchNorm, own_parameters
from ..inputs.numbers import require_number
from ..inputs.text import quote
from .safe_norm import row_norms

ONE, TWO, ZERO = "one", "two", "zero"
SIDES = (ONE, TWO, ZERO)
HALF = (torch.float16, torch.bfloat16)

Critic = Callable[..., Any]


def gradient_penalty(
    critic: Critic, points: Tensor, *, side: str = ONE, target: float = 1.0, labels: Tensor | None = None
) -> Tensor:
    """Return the mean penalty on the norm of a critic's gradient by its input.

    With g_i = ||grad f(x_i)||_2, over all dimensions of sample i:

    - ``"one"``: max(0, g_i - target)^2, WGAN-LP (Petzka, Fischer, Lukovnikov, ICLR 2018, arXiv 1709.08894);
    - ``"two"``: (g_i - target)^2, WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028);
    - ``"zero"``: g_i^2, the penalty of R1 and R2 without their factor 1/2 (Mescheder et al. 2018, arXiv 1801.04406).

    Add lambda times it to the critic's loss, mean f(generated) - mean f(real), and go backward once. If a gradient is
    0, the norm's derivative counts as 0.

    The critic is called outside autocast, also where Accelerate has patched autocast into it. Half-precision points
    become float32 unless the critic itself is in half precision. Attention takes the kernel that can be
    differentiated twice.

    Args:
        critic: from points to one number a sample, of shape (n,) or (n, 1, ...), or an object with such ``logits``.
            Each number may depend on its own sample only. Batch normalization is refused in a ``torch.nn.Module``, but
            not noticed in other callables.
        points: of shape (n, ...), from a sampler such as `LinePoints`; gradients do not flow into them.
        side: ``"one"``, ``"two"`` or ``"zero"``.
        target: the largest norm without a penalty, in units of the critic's output per unit of its input. ``"zero"``
            has no target.
        labels: second argument of a conditional critic, of shape (n,); points on a line have the label of the real
            sample.

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
    target = check_penalty(side, target)
    return penalty_of_norms(gradient_norms(critic, points, labels=labels), side, target)


def check_penalty(side: str, target: float) -> float:
    """Return the target; refuse a side that does not exist, or a target that it cannot have.

    Raises:
        ValueError: the side or the target is invalid; the message names it.
    """
    if not isinstance(side, str) or side not in SIDES:
        raise ValueError(f"side={quote(side)}: give one of {', '.join(map(repr, SIDES))}.")
    target = require_number("target", target, 0, open_low=True, more='; side="zero" is the penalty without a target')
    if side == ZERO and target != 1.0:
        raise ValueError(
            f'target={target!r} does not apply to side="zero", which penalizes every gradient: leave it out.'
        )
    return target


def penalty_of_norms(norms: Tensor, side: str, target: float) -> Tensor:
    """Return the mean penalty of norms from `gradient_norms`."""
    excess = norms if side == ZERO else norms - target
    if side == ONE:
        excess = excess.relu()
    return excess.square().mean()


def gradient_norms(critic: Critic, points: Tensor, *, labels: Tensor | None = None) -> Tensor:
    """Return the norm of the critic's gradient at each point.

    ``max() - 1`` of it shows how far the critic is from being 1-Lipschitz.

    Args:
        critic: as for `gradient_penalty`.
        points: of shape (n, ...).
        labels: second argument of a conditional critic, of shape (n,).

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
    if labels is not None and labels.shape != (len(points),):
        raise ValueError(f"labels of shape {tuple(labels.shape)} for {len(points)} points: give one label for each.")
    modules = _modules(critic)
    _refuse_batch_normalization(modules)
    differentiable = torch.is_grad_enabled()
    with (
        torch.enable_grad(),
        torch.autocast(points.device.type, enabled=False),
        without_patched_forward(list(modules.values())),
        sdpa_kernel(SDPBackend.MATH),
    ):
        inputs = _inputs(modules, points).requires_grad_()
        output = critic(inputs) if labels is None else critic(inputs, labels)
        values = one_value_per_sample(output, len(inputs), "critic")
        gradient = None
        if values.requires_grad:
            total = values.double().sum() if values.dtype in HALF else values.sum()
            (gradient,) = torch.autograd.grad(total, inputs, create_graph=differentiable, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "the critic's output does not depend on the points through differentiable operations: remove "
                "constants, no_grad, .detach() or .item() from the critic."
            )
        return row_norms(gradient)


def one_value_per_sample(output: Any, samples: int, function: str) -> Tensor:
    """Return the output of a critic or scorer, as (n,).

    Raises:
        ValueError: it is not one number for each sample.
    """
    values = getattr(output, "logits", output)
    if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != samples or values.numel() != samples:
        description = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        raise ValueError(
            f"the {function} returned {description} for {samples} samples: it must return one number for each sample, "
            f"of shape ({samples},) or ({samples}, 1). Wrap it in a function that averages patches or selects a class."
        )
    return values.reshape(samples)


def refuse_coupled_samples(critic: Critic) -> None:
    """Refuse batch normalization by the statistics of the batch.

    Raises:
        ValueError: there is one; the message names the module.
    """
    _refuse_batch_normalization(_modules(critic))


def critic_inputs(critic: Critic, points: Tensor) -> Tensor:
    """Return the points without their graph, in the critic's dtype."""
    return _inputs(_modules(critic), points)


def _refuse_batch_normalization(modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"critic: '{name or type(module).__name__}' is batch normalization ({type(module).__name__}). It makes "
                "each sample's value depend on the other samples of the batch, so the gradient by one sample is not "
                "defined. Use layer, group or instance normalization, or none, in the critic. The generator may have "
                "batch normalization."
            )


def _inputs(modules: dict[str, nn.Module], points: Tensor) -> Tensor:
    # A tensor from inference mode cannot be in a graph, but its copy can.
    points = points.clone() if points.is_inference() else points.detach()
    return points.to(_dtype(modules, points))


def _modules(critic: Critic) -> dict[str, nn.Module]:
    module = critic if isinstance(critic, nn.Module) else getattr(critic, "__self__", None)
    return dict(module.named_modules()) if isinstance(module, nn.Module) else {}


def _dtype(modules: dict[str, nn.Module], points: Tensor) -> torch.dtype:
    """Return the dtype of the critic's parameters.

    Without parameters, half-precision points become float32.
    """
    for module in modules.values():
        for parameter in own_parameters(module).values():
            if parameter is not None and parameter.is_floating_point():
                return parameter.dtype
    return torch.float32 if points.dtype in HALF else points.dtype
