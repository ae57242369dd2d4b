"""The activation between two layers, as a function of a number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .hidden_layer import HiddenLayer
from .objective import Objective


class _Stopped(Exception):
    """Ends a forward pass whose rest is not needed."""


def activation_of(model: nn.Module, objective: Objective, hidden: HiddenLayer) -> Callable[[Tensor], Tensor]:
    """Return the elementwise function between the layers, differentiable; it takes values of any shape.

    The model runs up to the next layer, with the values in the place of pre-activations.
    """

    def evaluate(values: Tensor) -> Tensor:
        rest, results = values.reshape(-1), []
        while len(rest):
            result = _run(model, objective, hidden, rest)
            results.append(result)
            rest = rest[len(result) :]
        return torch.cat(results).view(values.shape)

    return evaluate


def _run(model: nn.Module, objective: Objective, hidden: HiddenLayer, values: Tensor) -> Tensor:
    """Return the function of as many values as one batch has pre-activations."""
    inputs: list[Tensor] = []

    def on_first(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        used = values[: output.numel()]
        return torch.cat([used, used.new_zeros(output.numel() - len(used))]).view(output.shape)

    def on_next(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])
        raise _Stopped

    hooks = [hidden.incoming[0].register_forward_hook(on_first), hidden.outgoing.register_forward_pre_hook(on_next)]
    try:
        with contextlib.suppress(_Stopped):
            next(objective.batch_losses(model))
    finally:
        for hook in hooks:
            hook.remove()
    return inputs[0].reshape(-1)[: len(values)]


@dataclass(frozen=True)
class Slopes:
    """The largest derivatives of an activation where it bends, and whether it bends anywhere.

    Attributes:
        first: the largest ``|sigma'|`` on [-6, 6].
        second: the largest ``|sigma''|`` there; 0 for a piecewise linear activation such as ReLU.
    """

    first: float
    second: float


def largest_slopes(activation: Callable[[Tensor], Tensor], like: Tensor) -> Slopes:
    """Return the largest derivatives of an activation on a grid."""
    grid = torch.linspace(-6.0, 6.0, 97, dtype=like.dtype, device=like.device).add(0.01).requires_grad_()
    (first,) = torch.autograd.grad(activation(grid).sum(), grid, create_graph=True)
    second = torch.zeros_like(grid)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), grid, materialize_grads=True)
    return Slopes(float(first.detach().abs().max()), float(second.detach().abs().max()))
