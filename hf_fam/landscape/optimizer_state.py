"""Give an optimizer the parameters of a widened model, with the state that it had for the old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .hidden_layer import HiddenLayer
from .neuron_weights import incoming_rows, outgoing_blocks

# Names of states that hold squares of gradients, in torch's optimizers and in those that follow them.
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")


class StateTransfer:
    """The states of an optimizer for layers that are about to be widened.

    A copy of a neuron has the share r of its outgoing weights. Its gradient is r g for its incoming weights, where the
    neuron had g, and the same for its outgoing weights. So for incoming weights, sums of gradients are multiplied by r
    and sums of squares by r^2. Sums of normalized gradients are multiplied by the sign of r. A state that is not of the
    parameter's shape is dropped, and begins anew.

    Args:
        optimizer: of torch's kind, not wrapped.
        layers: the layers, before they are widened.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Sequence[HiddenLayer]) -> None:
        self.optimizer = optimizer
        self.old = [(hidden.width, _parameters(hidden)) for hidden in layers]

    def finish(self, splits: Sequence[tuple[HiddenLayer, list[int]]], ratio: float) -> None:
        """Put the new parameters into the optimizer.

        Args:
            splits: the same layers after widening, with the split neurons in order.
            ratio: lambda of every split.
        """
        replaced: dict[int, nn.Parameter] = {}
        for (width, old), (hidden, neurons) in zip(self.old, splits, strict=True):
            sources, shares = _sources(width, neurons, ratio)
            for (module, name, before), (_, _, now) in zip(old, _parameters(hidden), strict=True):
                replaced[id(before)] = now
                state = self.optimizer.state.pop(before, None)
                change = _change_of(module, name, hidden, width, sources, shares)
                if state and all(_fits(value, before) for value in state.values()):
                    self.optimizer.state[now] = {
                        key: change(value, _power(key, state)) if _has_shape(value, before) else value
                        for key, value in state.items()
                    }
        for group in self.optimizer.param_groups:
            group["params"] = [replaced.get(id(parameter), parameter) for parameter in group["params"]]


def _parameters(hidden: HiddenLayer) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return the parameters that widening replaces: module, name and parameter."""
    modules = [*hidden.incoming, *hidden.norms]
    found = [(module, name, p) for module in modules for name, p in module.named_parameters(recurse=False)]
    return [*found, (hidden.outgoing, "weight", hidden.outgoing.weight)]


def _sources(width: int, neurons: Sequence[int], ratio: float) -> tuple[list[int], list[float]]:
    """Return, for every neuron after the splits, the neuron that it was and its share of the outgoing weights."""
    sources, shares = list(range(width)), [1.0] * width
    for neuron in neurons:
        sources.append(sources[neuron])
        shares.append(shares[neuron] * (1 - ratio))
        shares[neuron] *= ratio
    return sources, shares


def _change_of(
    module: nn.Module, name: str, hidden: HiddenLayer, width: int, sources: list[int], shares: list[float]
) -> Callable[[Tensor, int], Tensor]:
    """Return the function that turns a state of the old parameter into one of the new."""

    def change(value: Tensor, power: int) -> Tensor:
        index = torch.tensor(sources, device=value.device)
        if module is hidden.outgoing:
            blocks = outgoing_blocks(module, width, value)[index]
            weight: Tensor = hidden.outgoing.get_parameter("weight")
            new = torch.zeros_like(weight, dtype=value.dtype)
            outgoing_blocks(module, len(sources), new).copy_(blocks)
            return new
        factors = torch.tensor(shares).to(value)
        factors = factors**power if power else factors.sign()
        if value.dim() == 1:
            return value[index] * factors
        parameter: Tensor = module.get_parameter(name)
        new = torch.zeros_like(parameter, dtype=value.dtype)
        incoming_rows(module, new).copy_(incoming_rows(module, value)[index] * factors[:, None])
        return new

    return change


def _power(key: str, state: dict[str, Any]) -> int:
    """Return the power of the gradient that a state has; 0 for RMSprop's momentum, of normalized gradients."""
    if key in SQUARES:
        return 2
    return 0 if key == "momentum_buffer" and "square_avg" in state else 1


def _has_shape(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


def _fits(value: Any, parameter: Tensor) -> bool:
    """Return True for a number, or a tensor of the parameter's shape."""
    return not isinstance(value, Tensor) or value.numel() == 1 or value.shape == parameter.shape
