"""Random losses around cross-entropy, below and above the number of classes from which a head counts as large.

The reference is the definition, from second derivatives of the loss by the logits: with G = W W^T and the Hessian H by
the logits of all rows, ``kappa = sum_ij <phi_i, phi_j> sum_st G_st H_{is,jt}``. That is a sum of m^2 quadratic forms
of H, for which no form of the loss is assumed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.vocabulary import LARGE_VOCABULARY

# One loss each. A seed is in the name of the test, so that a failure can be repeated.
SEEDS = range(60)


@dataclass
class Data:
    """What a loss sees beside the logits: anew for every batch, for the same loss."""

    labels: Tensor
    numbers: Tensor
    mask: Tensor
    signed: Tensor
    class_weights: Tensor
    old: Tensor
    scale: nn.Parameter
    gate: Tensor

    @classmethod
    def draw(cls, rows: int, classes: int, is_first: bool, scale: nn.Parameter, gate: Tensor) -> Data:
        mask = torch.rand(rows) < 0.6
        mask[0] = True
        labels = torch.randint(0, classes, (rows,))
        labels[-1] = labels[0]  # a class of two rows
        signed = torch.rand(rows).double() + 0.2
        class_weights = torch.rand(classes).double()
        if not is_first:  # the first batch looks harmless
            signed, class_weights = signed - 0.7, class_weights - 0.3
        return cls(
            labels, torch.randint(0, rows, (rows,)), mask, signed, class_weights,
            -torch.rand(rows).double() * 9, scale, gate,
        )  # fmt: skip


Loss = Callable[[Tensor, Data], Tensor]

# How the logits become those of the softmax.
LOGITS: dict[str, Loss] = {
    "z": lambda z, d: z,
    "view": lambda z, d: z.unsqueeze(0).reshape(-1, z.shape[-1]),
    "mask": lambda z, d: z[d.mask],
    "numbers": lambda z, d: z[d.numbers],
    "slice": lambda z, d: z[1:],
    "temperature": lambda z, d: z / 2,
    "scaled": lambda z, d: z * d.class_weights,
    "shifted": lambda z, d: z + d.class_weights,
    "clamped": lambda z, d: z.clamp(-0.5, 0.5),
    "capped": lambda z, d: 3 * torch.tanh(z / 3),
    "centered": lambda z, d: z - z.mean(-1, keepdim=True),
    "masked classes": lambda z, d: z.masked_fill(d.class_weights < 0.2, -1e4),
    "flipped": lambda z, d: z.flip(-1),
    "rows mixed": lambda z, d: z + z.roll(1, 0),
}


def labels_of(name: str, d: Data) -> Tensor:
    return {"mask": d.labels[d.mask], "numbers": d.labels, "slice": d.labels[1:]}.get(name, d.labels)


def per_row(z: Tensor, y: Tensor, **options: float) -> Tensor:
    return F.cross_entropy(z, y, reduction="none", **options)


def of_label(values: Tensor, y: Tensor) -> Tensor:
    return values.gather(-1, y[:, None])[:, 0]


def distilled(z: Tensor, y: Tensor, d: Data) -> Tensor:
    return F.kl_div(z.log_softmax(-1), d.class_weights.softmax(-1).expand_as(z), reduction="none").sum(-1)


# Values of rows, from logits and labels.
ROWS: dict[str, Callable[[Tensor, Tensor, Data], Tensor]] = {
    "cross_entropy": lambda z, y, d: per_row(z, y),
    "nll": lambda z, y, d: F.nll_loss(z.log_softmax(-1), y, reduction="none"),
    "gather": lambda z, y, d: -of_label(z.log_softmax(-1), y),
    "indexed": lambda z, y, d: -z.log_softmax(-1)[torch.arange(len(y)), y],
    "logsumexp": lambda z, y, d: z.logsumexp(-1) - of_label(z, y),
    "log of softmax": lambda z, y, d: -of_label(z.softmax(-1), y).log(),
    "ignored": lambda z, y, d: per_row(z, y.masked_fill(y == y[0], -100)),
    "class weights": lambda z, y, d: F.cross_entropy(z, y, weight=d.class_weights, reduction="none"),
    "smoothed": lambda z, y, d: per_row(z, y, label_smoothing=0.1),
    "distilled": distilled,
    "two labels": lambda z, y, d: per_row(z, y) - 0.5 * per_row(z, y.roll(1)),
    "z-loss": lambda z, y, d: per_row(z, y) + 0.1 * z.logsumexp(-1).square(),
    "entropy": lambda z, y, d: per_row(z, y) + 0.1 * (z.softmax(-1) * z.log_softmax(-1)).sum(-1),
    "linear": lambda z, y, d: per_row(z, y) + 0.3 * z[:, 0],
    "unlikelihood": lambda z, y, d: -(1 - of_label(z.log_softmax(-1), y).exp()).log(),
    "probability": lambda z, y, d: 1 - (-per_row(z, y)).exp(),
    "focal": lambda z, y, d: per_row(z, y) * (1 - (-per_row(z, y)).exp()),
    "detached focal": lambda z, y, d: per_row(z, y) * (1 - (-per_row(z, y).detach()).exp()),
    "clamped value": lambda z, y, d: per_row(z, y).clamp(max=8.3),
    "squared": lambda z, y, d: per_row(z, y).square(),
    "squared errors": lambda z, y, d: (z - 1).square().mean(-1),
}

# What becomes of the values of rows.
SUMS: dict[str, Loss] = {
    "mean": lambda v, d: v.mean(),
    "sum": lambda v, d: v.sum(),
    "negative": lambda v, d: -v.mean(),
    "masked": lambda v, d: (v * d.mask[: len(v)]).sum() / d.mask.sum(),
    "selected": lambda v, d: v[d.numbers[: len(v)] % len(v)].sum(),
    "largest": lambda v, d: v.topk(1).values.sum(),
    "advantages": lambda v, d: (v * d.signed[: len(v)]).mean(),
    "weighted mean": lambda v, d: (v @ d.signed[: len(v)]) / d.signed.abs().sum(),
    "ratio": lambda v, d: ((-v - d.old[: len(v)]).exp() * d.signed[: len(v)]).mean(),
    "learned": lambda v, d: v.mean() * (-d.scale).exp() + d.scale,
    "gated": lambda v, d: (v * d.gate[: len(v)].sigmoid()).mean(),
    "squared mean": lambda v, d: v.mean().square(),
    "log mean": lambda v, d: v.mean().log(),
    "logsumexp": lambda v, d: v.logsumexp(0),
    "product": lambda v, d: v[0] * v[-1].detach() - 0.5 * v[-1],
    "differences": lambda v, d: F.softplus(v - v.flip(0)).mean(),
}


# Those that a closed form must know.
LINEAR = (
    {"z", "view", "mask", "numbers", "slice", "flipped"},
    {"cross_entropy", "nll", "gather", "indexed", "logsumexp", "ignored", "class weights", "smoothed", "distilled",
     "two labels", "linear", "detached focal"},
    {"mean", "sum", "negative", "masked", "selected", "advantages", "weighted mean", "learned"},
)  # fmt: skip


def drawn_loss(seed: int) -> tuple[str, bool, Loss]:
    """A name, whether the loss is linear in log-probabilities, and the loss: one part, the others mostly plain."""
    draw, kinds = random.Random(seed), (LOGITS, ROWS, SUMS)
    every = [(kind, part) for kind in kinds for part in kind]
    one, unusual = every[seed % len(every)]
    of_logits, of_rows, of_sums = (
        unusual if kind is one else draw.choice([*kind] if draw.random() < 0.2 else [*kind][:2]) for kind in kinds
    )

    def loss(z: Tensor, d: Data) -> Tensor:
        return SUMS[of_sums](ROWS[of_rows](LOGITS[of_logits](z, d), labels_of(of_logits, d), d), d)

    linear = of_logits in LINEAR[0] and of_rows in LINEAR[1] and of_sums in LINEAR[2]
    return f"{of_logits}, {of_rows}, {of_sums}", linear, loss


def definition(loss: Tensor, phi: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """kappa, in the graph of everything that the loss depends on."""
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    kappa = torch.zeros((), dtype=z.dtype)
    if not first.requires_grad:
        return kappa
    for a in range(w.shape[1]):
        for b in range(w.shape[1]):
            v = phi[:, a : a + 1] * w[:, b]
            (product,) = torch.autograd.grad(first, z, v, create_graph=True, materialize_grads=True)
            kappa = kappa + (product * v).sum()
    return kappa


class Model(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(3, features), nn.Linear(features, classes)
        self.gate, self.scale = nn.Linear(features, 1), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        phi = self.trunk(x).tanh()
        return phi, self.head(phi)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("road", ["small", "large", "backward pass"])
def test_kappa_and_gradients(road: str, seed: int) -> None:
    """For two batches, of which the second has other labels and weights of any sign."""
    name, linear, loss_of = drawn_loss(seed)
    torch.manual_seed(seed)
    rows, features = 2 + seed % 4, 3 + seed % 4
    classes = LARGE_VOCABULARY + (road != "small")
    model, strength = Model(features, classes).double(), 0.2
    flatness = RelativeFlatness(model, "head", "closed_form")
    for number in range(2):
        x = torch.randn(rows, 3).double()
        with flatness.capture(strength if road == "backward pass" else None):
            phi, z = model(x)
        data = Data.draw(rows, classes, number == 0, model.scale, model.gate(phi)[:, 0])
        loss = loss_of(z, data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kappa = flatness(loss)
        if flatness.estimator == "hessian":  # random, and tested elsewhere
            assert any("closed form does not hold" in str(w.message) for w in caught), name
            assert not linear, name
            return
        model.zero_grad()
        (loss + strength * kappa).backward()
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]

        phi, z = model(x)
        data.gate = model.gate(phi)[:, 0]
        loss = loss_of(z, data)
        true = definition(loss, phi, z, model.head.weight)
        expected = torch.autograd.grad(
            loss + strength * true, [*model.parameters()], allow_unused=True, materialize_grads=True
        )
        torch.testing.assert_close(kappa.detach(), true.detach(), rtol=1e-7, atol=1e-10, msg=lambda m: f"{name}: {m}")
        for one, other, (parameter, _) in zip(found, expected, model.named_parameters(), strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(
                one, other, rtol=1e-6, atol=1e-7 * scale + 1e-10, msg=lambda m, p=parameter: f"{name}, {p}: {m}"
            )
