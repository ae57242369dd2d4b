"""How far rounding can move a result: the network is run with every layer's output moved a little.

A layer computes ``W x + b`` in float64 up to about one unit of rounding of ``|W| |x| + |b|``. The outputs of all layers
are moved by random signs times many such units, and the response is divided by their number. That shows what rounding
does to any quantity behind them, cancellation included. It is the idea of Monte Carlo arithmetic (Parker 1997).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .neuron_weights import is_rewritable
from .objective import Objective

UNIT = sys.float_info.epsilon
# The size of a perturbation in units of rounding, far above the rounding of the perturbed pass itself.
UNITS = 2**13
DRAWS = 3
# The true error of a sum is rarely more than this many times the response to random signs.
SAFETY = 8.0


@contextmanager
def perturbed_outputs(model: nn.Module, seed: int) -> Iterator[None]:
    """Move the outputs of all innermost modules by `UNITS` units of rounding inside the ``with`` block."""
    generators: dict[torch.device, torch.Generator] = {}

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        generator = generators.setdefault(output.device, torch.Generator(output.device).manual_seed(seed))
        signs = 2 * torch.randint(2, output.shape, generator=generator, device=output.device) - 1
        return output + UNITS * UNIT * signs * _size(module, args, output)

    hooks = [module.register_forward_hook(on_output) for module in model.modules() if not any(module.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def loss_rounding(model: nn.Module, objective: Objective) -> float:
    """Return what rounding can do to the loss."""
    value, change = objective.value(model), 0.0
    for seed in range(DRAWS):
        with perturbed_outputs(model, seed):
            change = max(change, abs(objective.value(model) - value))
    return SAFETY * change / UNITS


@torch.no_grad()
def _size(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return the sum of the absolute values of the terms of every output."""
    if is_rewritable(module) and len(args) == 1:
        sizes = {f"layer.{name}": parameter.abs() for name, parameter in module.named_parameters()}
        return torch.func.functional_call(_WithoutHooks(module), sizes, (args[0].abs(),))
    return output.detach().abs()


class _WithoutHooks(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer.forward(x)
        return result
