"""A small ReLU network, and changes of its weights that leave its function as it is."""

from __future__ import annotations

import torch
from torch import nn


def relu_network(width: int = 6, depth: int = 3) -> nn.Sequential:
    """Linear + ReLU layers in float64, three inputs and three classes."""
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Linear(3 if k == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3)).double()


@torch.no_grad()
def rescale_layer(model: nn.Sequential, index: int, factor: float) -> None:
    """Multiply one linear layer and divide the next."""
    model[index].weight.mul_(factor)
    model[index].bias.mul_(factor)
    model[index + 2].weight.div_(factor)


@torch.no_grad()
def rescale_neurons(model: nn.Sequential, index: int, factors: torch.Tensor) -> None:
    """Multiply every output neuron of a linear layer by its own factor and divide the next layer's columns."""
    model[index].weight.mul_(factors[:, None])
    model[index].bias.mul_(factors)
    model[index + 2].weight.div_(factors)
