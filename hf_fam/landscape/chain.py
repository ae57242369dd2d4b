"""A fully connected network as a chain: linear layers with elementwise activations between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .hidden_layer_search import calls_in_order

# Pre-activations between which an inverse is looked for.
FAR = 1e4


@dataclass(frozen=True)
class Chain:
    """The linear layers of a network, in the order in which they run, and the activations behind all but the last.

    Attributes:
        names: dotted names of the layers.
        layers: the layers.
        activations: the function behind each layer but the last.
    """

    names: tuple[str, ...]
    layers: tuple[nn.Linear, ...]
    activations: tuple[Callable[[Tensor], Tensor], ...]

    def pre_activations(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of every layer for a batch, ``(items, units)`` each."""
        outputs = [self.layers[0](x)]
        for layer, activation in zip(self.layers[1:], self.activations, strict=True):
            outputs.append(layer(activation(outputs[-1])))
        return outputs

    def features(self, x: Tensor, layer: int) -> Tensor:
        """Return the inputs of a layer for a batch."""
        return x if layer == 0 else self.activations[layer - 1](self.pre_activations(x)[layer - 1])


def chain_of(model: nn.Module) -> Chain:
    """Return the chain of an ``nn.Sequential``, nested or not.

    Raises:
        TypeError: the model is something else, or holds another module than linear layers and elementwise activations.
    """
    if type(model) is not nn.Sequential:
        raise TypeError(
            f"the model is a {type(model).__name__}: give an nn.Sequential of linear layers and activations."
        )
    names: list[str] = []
    layers: list[nn.Linear] = []
    between: list[list[nn.Module]] = []
    for name, module, is_elementwise in calls_in_order(model):
        if isinstance(module, nn.Linear):
            if module in layers:
                raise TypeError(f"layer '{name}' is called more than once: give each place a layer of its own.")
            names.append(name)
            layers.append(module)
            between.append([])
        elif is_elementwise and layers:
            between[-1].append(module)
        else:
            raise TypeError(
                f"'{name}' is a {type(module).__name__}: give linear layers with elementwise activations between them."
            )
    if not layers or any(not isinstance(module, (nn.Identity, nn.Dropout)) for module in between[-1]):
        raise TypeError(
            "the network ends with an activation: its last layer must be linear, put the rest into the loss."
        )
    activations = tuple(nn.Sequential(*modules) for modules in between[:-1])
    return Chain(tuple(names), tuple(layers), activations)


def check_increasing(activation: Callable[[Tensor], Tensor], name: str, like: Tensor) -> None:
    """Refuse an activation without an inverse.

    Raises:
        ValueError: it is not strictly increasing.
    """
    values = activation(torch.linspace(-5, 5, 2001).to(like)).tolist()
    if not all(low < high for low, high in pairwise(values)):
        raise ValueError(
            f"the activation behind layer '{name}' is not strictly increasing, so it has no inverse: above the wide "
            "layer use tanh, sigmoid, softplus, LeakyReLU or ELU."
        )


def half_range(activation: Callable[[Tensor], Tensor], like: Tensor) -> tuple[float, float]:
    """Return sigma(0), and half the distance from it to the nearer end of the activation's range."""
    low, center, high = activation(torch.tensor([-FAR, 0.0, FAR]).to(like)).tolist()
    return center, min(center - low, high - center) / 2


def inverse(activation: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return the pre-activations of values inside the range of an increasing activation, by bisection."""
    size = torch.ones_like(values)
    while bool(((activation(-size) > values) | (activation(size) < values)).any()) and float(size.max()) < FAR:
        size = torch.where((activation(-size) > values) | (activation(size) < values), 2 * size, size)
    low, high = -size, size
    for _ in range(80):
        middle = (low + high) / 2
        is_below = activation(middle) < values
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2
