"""A small network on scikit-learn's digits, trained in seconds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset


def digits(items: int = 1797) -> TensorDataset:
    """Return the first images, as 64 numbers from 0 to 1, and their classes."""
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x[:items]) / 16, torch.tensor(y[:items]))


def network(activation: type[nn.Module]) -> nn.Sequential:
    """Return an untrained network 64-32-32-10 in float64. Its linear layers are ``first``, ``second`` and ``head``."""
    torch.manual_seed(0)
    layers = {
        "first": nn.Linear(64, 32),
        "first_activation": activation(),
        "second": nn.Linear(32, 32),
        "second_activation": activation(),
        "head": nn.Linear(32, 10),
    }
    return nn.Sequential(OrderedDict(layers)).double()


def trained(data: TensorDataset, activation: type[nn.Module]) -> nn.Sequential:
    """Return the network after 200 steps of Adam on all items at once."""
    model = network(activation)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss_fn(model, data.tensors).backward()
        optimizer.step()
    return model


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])
