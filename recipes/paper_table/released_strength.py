"""Which strength, on relative flatness, the released FAM code's strength corresponds to.

The released regularizer is not relative flatness (README.md): it adds up other entries of the same Hessian, divides by
the number of features m, and has a gradient in the layer's weights alone, in which the Hessian counts as a constant.
Its gradient is compared here with that of relative flatness, both in the weights of a random head on random features.
They are about a factor m^2 apart.

python recipes/paper_table/released_strength.py
"""

from __future__ import annotations

import torch
from torch import Tensor

# Row of the table: the script's strength, classes d, features m.
SCRIPTS = {
    "CIFAR-10, ResNet-18": (0.1, 10, 64),
    "CIFAR-100, EfficientNet-B7": (1.0, 100, 500),
    "SVHN, WRN28-10": (0.2, 10, 64),
    "FashionMNIST, WRN28-10": (0.1, 10, 64),
    "RTE, BERT-base": (3e6, 2, 768),
}


def released(weight: Tensor, features: Tensor) -> Tensor:
    """What the released code adds to the loss for softmax cross-entropy, ``sum_ij <w_i, w_j> T_ij / m``.

    ``T_ij`` is the trace of the slice ``H[:, j, i, :]`` of the Hessian of shape ``(d, m, d, m)``, a constant for the
    gradient.

    Args:
        weight: shape ``(d, m)`` with d <= m.
        features: shape ``(items, m)``.
    """
    d, m = weight.shape
    p = (features @ weight.T).softmax(-1).detach()
    curvature = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    traces = torch.einsum("nki,nk,nj->ij", curvature, features[:, :d], features[:, :d]) / len(features)
    return (weight @ weight.T * traces).sum() / m


def relative_flatness(weight: Tensor, features: Tensor) -> Tensor:
    """kappa of a softmax head, ``mean ||phi||^2 Var_{k ~ p}(w_k)``."""
    p = (features @ weight.T).softmax(-1)
    variance = p @ weight.square().sum(-1) - (p @ weight).square().sum(-1)
    return (features.square().sum(-1) * variance).mean()


def factor(classes: int, features: int, seed: int, items: int = 512) -> float:
    """``||d released|| / ||d kappa||`` for a random head on normal features."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    weight = (torch.rand(classes, features, **draw) * 2 - 1) / features**0.5  # as torch.nn.Linear begins
    weight.requires_grad_()
    phi = torch.randn(items, features, **draw)
    norms = [torch.autograd.grad(f(weight, phi), weight)[0].norm() for f in (released, relative_flatness)]
    return float(norms[0] / norms[1])


def corresponding(row: str, seeds: int = 20) -> float:
    """The strength on relative flatness: the script's, times the mean factor."""
    strength, classes, features = SCRIPTS[row]
    return strength * sum(factor(classes, features, seed) for seed in range(seeds)) / seeds


def table() -> str:
    """The strengths as a table, one significant digit: more is not known."""
    lines = ["| | λ in the script | d | m | λ on κ |", "| --- | --- | --- | --- | --- |"]
    for row, (strength, classes, features) in SCRIPTS.items():
        lines.append(f"| {row} | {strength:g} | {classes} | {features} | {corresponding(row):.0e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
