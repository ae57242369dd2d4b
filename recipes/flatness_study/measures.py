"""What is measured of a trained network: flatness of the layers fc2 and fc3, and of the whole."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from network import LeNet5, Split
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hf_fam import measure_relative_flatness

# What the accuracy may lose under noise, for PAC-Bayes flatness (Jiang et al. 2020).
TOLERATED_DROP = 0.1


def measured(model: LeNet5, data: Split) -> dict[str, Any]:
    """Return all measures for one parametrization of the network: of fc2, of fc3, and of the whole.

    The layers are measured on their cached features, because the network below a layer does not matter to its Hessian.
    """
    with torch.no_grad():
        features = torch.cat([model.features(x) for x in data.images.split(500)]).double()
        fc2, head = copy.deepcopy(model.fc2).double(), copy.deepcopy(model.head).double()
        last_features = F.relu(fc2(features))
    return {
        "fc2": of_layer(nn.Sequential(fc2, nn.ReLU(), head), TensorDataset(features, data.labels)),
        "fc3": of_layer(nn.Sequential(head), TensorDataset(last_features, data.labels)),
        "fisher_rao": fisher_rao_norm(model, data),
        "pac_bayes": pac_bayes_flatness(model, data),
    }


def of_layer(tail: nn.Sequential, items: TensorDataset) -> dict[str, float]:
    """Return the measures of the first layer of a network.

    Args:
        tail: the layer and the network above it.
        items: features that enter the layer, and labels.
    """
    shared: dict[str, Any] = {"loss_fn": _loss, "batch_size": 500, "progress": False}
    (normal,) = measure_relative_flatness(
        tail, items, "0", ("trace", "layerwise", "max_eigenvalue"), normalize_features=True, **shared
    )
    (plain,) = measure_relative_flatness(
        tail, items, "0", ("trace", "layerwise", "hessian_max_eigenvalue"), probes=tail[0].out_features, **shared
    )
    values = {
        "kappa": normal.kappa,
        "kappa_max": normal.kappa_max,
        "layerwise": normal.layerwise,
        "kappa_plain": plain.kappa,
        "layerwise_plain": plain.layerwise,
        "trace": plain.hessian_trace,
        "lambda_max": plain.hessian_max_eigenvalue,
        "weight_norm": plain.weight_norm,
    }
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def fisher_rao_norm(model: nn.Module, data: Split) -> float:
    """``sqrt(theta^T F theta)``, F the mean outer product of the gradients of single items (Liang et al. 2019)."""
    theta = {name: p.detach() for name, p in model.named_parameters()}
    total = 0.0
    for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):

        def losses(parameters: dict[str, Tensor], x: Tensor = images, y: Tensor = labels) -> Tensor:
            return F.cross_entropy(functional_call(model, parameters, (x,)), y, reduction="none")

        _, moved = jvp(losses, (theta,), (theta,))
        total += moved.double().square().sum().item()
    return math.sqrt(total / len(data.labels))


@torch.no_grad()
def pac_bayes_flatness(model: nn.Module, data: Split, samples: int = 5, items: int = 1000, steps: int = 10) -> float:
    """``1 / sigma^2`` for the largest sigma under which Gaussian noise on all weights costs a tenth of the accuracy."""
    chosen = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:items]
    images, labels = data.images[chosen], data.labels[chosen]
    noisy = copy.deepcopy(model)

    def accuracy(sigma: float) -> float:
        generator = torch.Generator().manual_seed(1)
        found = 0.0
        for _ in range(samples):
            for p, q in zip(noisy.parameters(), model.parameters(), strict=True):
                p.copy_(q + sigma * torch.randn(q.shape, generator=generator))
            found += (noisy(images).argmax(1) == labels).double().mean().item()
        return found / samples

    least = accuracy(0.0) - TOLERATED_DROP
    low, high = 1e-6, 10.0  # bisection of the logarithm
    for _ in range(steps):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if accuracy(middle) >= least else (low, middle)
    return 1 / low**2
