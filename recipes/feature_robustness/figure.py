"""The loss rises under feature perturbations as kappa predicts, until higher orders matter.

    python recipes/feature_robustness/figure.py --output docs/img/feature-robustness.png

Trains a small tanh network on scikit-learn's digits for a few seconds and perturbs the features of its second layer.
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

from hf_fam.measure.robustness import feature_robustness

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/feature-robustness.png"))
    parser.add_argument("--items", type=int, default=1797, help="how many digits to use (default: all)")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    data = digits(options.items)
    curve = feature_robustness(trained(data), data, "second", DELTAS, loss_fn=loss_fn, batch_size=500)
    print(curve)
    curve.plot(options.output)


def digits(items: int) -> TensorDataset:
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x[:items]) / 16, torch.tensor(y[:items]))


def trained(data: TensorDataset) -> nn.Sequential:
    torch.manual_seed(0)
    layers = {
        "first": nn.Linear(64, 32),
        "first_tanh": nn.Tanh(),
        "second": nn.Linear(32, 32),
        "second_tanh": nn.Tanh(),
        "head": nn.Linear(32, 10),
    }
    model = nn.Sequential(OrderedDict(layers)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss_fn(model, data.tensors).backward()
        optimizer.step()
    return model


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


if __name__ == "__main__":
    main()
