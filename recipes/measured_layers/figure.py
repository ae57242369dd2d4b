"""The figure of docs/measure.md: kappa of every layer of a small network.

    python recipes/measured_layers/figure.py --output docs/img/measured-layers.png

Trains a small tanh network on scikit-learn's digits for a few seconds.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hf_fam import measure_relative_flatness


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/measured-layers.png"))
    parser.add_argument("--steps", type=int, default=200, help="steps of training (default: 200)")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x) / 16, torch.tensor(y))
    torch.manual_seed(0)
    layers = {"first": nn.Linear(64, 32), "tanh1": nn.Tanh(), "second": nn.Linear(32, 32), "tanh2": nn.Tanh()}
    model = nn.Sequential(OrderedDict(layers | {"head": nn.Linear(32, 10)})).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(options.steps):
        optimizer.zero_grad()
        loss_fn(model, data.tensors).backward()
        optimizer.step()
    table = measure_relative_flatness(model, data, "all", ["trace"], loss_fn=loss_fn, normalize_features=True)
    print(table)
    table.plot(options.output)


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


if __name__ == "__main__":
    main()
