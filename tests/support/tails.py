"""Small networks in float64, one for every kind of tail that the estimators have to get through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """One head of eager self-attention, so that tokens of an item are coupled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


class Pool(nn.Module):
    """Mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Choices(nn.Module):
    """Rows of one column to items of three choices."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 3)


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@dataclass
class Case:
    """A model, its feature layer, a batch, and the coupling of rows that is there."""

    model: nn.Module
    layer: nn.Linear
    inputs: Tensor
    labels: Tensor
    loss: Callable[[Tensor], Tensor]
    coupling: str

    def run(self) -> Tensor:
        return self.loss(self.model(self.inputs))


def _trunk() -> list[nn.Module]:
    return [nn.Linear(3, 4), nn.Tanh()]


def make(name: str, seed: int) -> Case:
    """A fresh random case of the given kind."""
    torch.manual_seed(seed)
    layer, tokens, labels, coupling = nn.Linear(4, 3), False, torch.randint(0, 3, (6,)), "rows"
    tail: list[nn.Module]
    if name == "linear":
        tail = [nn.Linear(3, 3)]
    elif name == "tanh_mlp":
        tail = [nn.Tanh(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)]
    elif name == "layernorm_gelu":
        tail = [nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 3)]
    elif name == "residual":
        tail = [Residual(nn.Linear(3, 3), nn.GELU()), nn.Linear(3, 3)]
    elif name == "attention":
        tail, tokens, coupling = [nn.Tanh(), Attention(3), Pool(), nn.Linear(3, 3)], True, "items"
    elif name == "tokens":
        tail, tokens = [nn.GELU(), nn.Linear(3, 3)], True
        labels = torch.randint(0, 3, (6, 2))
    elif name == "batchnorm":
        tail, coupling = [nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)], "batch"
    elif name == "multiple_choice":
        tail, labels, coupling = [nn.Tanh(), nn.Linear(3, 1), Choices()], labels[:2], "batch"
    else:
        raise KeyError(name)
    model = nn.Sequential(*_trunk(), layer, *tail).double()
    inputs = torch.randn(*((6, 2, 3) if tokens else (6, 3)), dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))

    return Case(model, layer, inputs, labels, loss, coupling)


TAILS = ["linear", "tanh_mlp", "layernorm_gelu", "residual", "attention", "tokens", "batchnorm", "multiple_choice"]
