"""Small data sets and losses to measure, and what the dense reference says of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hf_fam.flatness.estimators.dense import DenseFlatness, dense_flatness


def mlp(seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Three linear layers in float64, named 0, 2 and 4."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 7), activation(), nn.Linear(7, 6), activation(), nn.Linear(6, 3)).double()


def points(count: int = 37, seed: int = 1) -> TensorDataset:
    """Items with classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(0, 3, (count,), generator=generator))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean loss of a batch of `points`."""
    return F.cross_entropy(model(batch[0]), batch[1])


def reference(model: nn.Sequential, data: TensorDataset, index: int) -> DenseFlatness:
    """The dense reference over the whole data set at once."""
    return dense_flatness(cross_entropy(model, data.tensors), model[index].weight)
