"""Losses around cross-entropy, with item weights of any sign, trained or not, against the definition.

Every case runs just below and just above the number of classes from which a head counts as large, so that the road
through the second derivative and the one through graph and gradient answer for each other.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness

ROWS, FEATURES, CLASSES = 6, 4, 7
LABELS = torch.tensor([0, 3, 3, 6, 1, 5])
SCALE = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
CLASS_SCALES = nn.Parameter(torch.linspace(0.5, 1.5, CLASSES, dtype=torch.float64))


def per_row(z: Tensor) -> Tensor:
    return F.cross_entropy(z, LABELS, reduction="none")


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda z: F.cross_entropy(z, LABELS),
    "minus the mean": lambda z: -F.cross_entropy(z, LABELS),
    "a negative number": lambda z: F.cross_entropy(z, LABELS, reduction="sum") / -3,
    "subtracted": lambda z: 2.0 - F.cross_entropy(z, LABELS),
    "advantages": lambda z: (per_row(z) * torch.linspace(-1, 1, ROWS).double()).mean(),
    "negative rows": lambda z: (torch.full((ROWS,), -0.5).double() * per_row(z)).sum(),
    "unlikelihood beside likelihood": lambda z: per_row(z)[:3].mean() - per_row(z)[3:].mean(),
    "a mask": lambda z: (per_row(z) * (LABELS > 1)).sum() / 4,
    "class weights": lambda z: F.cross_entropy(z, LABELS, weight=torch.linspace(0, 2, CLASSES).double()),
    "negative class weights": lambda z: F.cross_entropy(
        z, LABELS, weight=torch.linspace(-1, 2, CLASSES).double(), reduction="sum"
    ),
    "rows by a mask": lambda z: F.cross_entropy(z[LABELS > 0], LABELS[LABELS > 0]),
    "rows by number": lambda z: F.cross_entropy(z[[0, 2, 5]], LABELS[[0, 2, 5]]),
    "a row twice, with two labels": lambda z: F.cross_entropy(z[[0, 0, 1]], LABELS[[0, 1, 2]]),
    "ignored rows": lambda z: F.cross_entropy(z, LABELS.masked_fill(LABELS == 3, -100)),
    "a learned uncertainty": lambda z: F.cross_entropy(z, LABELS) * (-SCALE).exp() + SCALE,
    "divided by a parameter": lambda z: F.cross_entropy(z, LABELS) / SCALE,
    "learned class weights": lambda z: (per_row(z) * CLASS_SCALES[LABELS]).mean(),
    "a gate that sees the features": lambda z: F.cross_entropy(z, LABELS) + SCALE**2,
}
TRAINED = {"a learned uncertainty", "divided by a parameter", "learned class weights"}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(secrets.randbits(32))


def definition(loss_of: Callable[[Tensor], Tensor], phi: Tensor, layer: nn.Linear) -> Tensor:
    """kappa from the full Hessian, in the graph of everything that the loss depends on."""
    z = F.linear(phi, layer.weight, layer.bias)
    (first,) = torch.autograd.grad(loss_of(z), layer.weight, create_graph=True)
    kappa = torch.zeros((), dtype=phi.dtype)
    for s in range(CLASSES):
        for i in range(FEATURES):
            (row,) = torch.autograd.grad(first[s, i], layer.weight, create_graph=True)
            kappa = kappa + (layer.weight[s] @ layer.weight.T) @ row[:, i]
    return kappa


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("name", LOSSES)
def test_kappa_and_its_gradients(name: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - large)
    trunk, head = nn.Linear(3, FEATURES).double(), nn.Linear(FEATURES, CLASSES).double()
    model, inputs = nn.Sequential(trunk, nn.Tanh(), head), torch.randn(ROWS, 3).double()
    wanted = [trunk.weight, head.weight, head.bias, *((SCALE, CLASS_SCALES) if name in TRAINED else ())]
    flatness = RelativeFlatness(model, "2", "closed_form")
    with flatness.capture():
        logits = model(inputs)
    kappa = flatness(LOSSES[name](logits))
    expected = definition(LOSSES[name], model[:2](inputs), head)
    torch.testing.assert_close(kappa, expected, rtol=1e-8, atol=1e-12)
    assert flatness.estimator == "closed_form"
    options = {"allow_unused": True, "materialize_grads": True}
    found, true = (torch.autograd.grad(y, wanted, **options) for y in (kappa, expected))
    torch.testing.assert_close(found, true, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_the_term_in_the_backward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large head whose strength is known: gradients of the parameters are those of loss + lambda kappa."""
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - 1)
    trunk, head = nn.Linear(3, FEATURES).double(), nn.Linear(FEATURES, CLASSES).double()
    model, inputs, strength = nn.Sequential(trunk, nn.Tanh(), head), torch.randn(ROWS, 3).double(), 0.2
    wanted = [trunk.weight, head.weight, head.bias, *((SCALE, CLASS_SCALES) if name in TRAINED else ())]
    flatness = RelativeFlatness(model, "2", "closed_form")
    with flatness.capture(strength):
        loss = LOSSES[name](model(inputs))
    for parameter in wanted:
        parameter.grad = None
    (loss + strength * flatness(loss)).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    total = LOSSES[name](model(inputs))
    total = total + strength * definition(LOSSES[name], model[:2](inputs), head)
    true = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    flatness.detach()
    torch.testing.assert_close(found, list(true), rtol=1e-7, atol=1e-11)


def test_a_loss_that_changes_its_form_is_followed() -> None:
    """First a squared error, then cross-entropy that couples the rows, as of a preference loss at its reference."""
    model, inputs = nn.Sequential(nn.Linear(3, FEATURES), nn.Tanh(), nn.Linear(FEATURES, CLASSES)), torch.randn(ROWS, 3)
    flatness = RelativeFlatness(model)
    names = []
    for step in range(12):
        with flatness.capture():
            z = model(inputs)
        if step < 5:
            loss = F.mse_loss(z, F.one_hot(LABELS, CLASSES).float())
        else:
            loss = F.cross_entropy(z, LABELS) * z.softmax(-1).amax(-1).mean()
        if step == 5:
            with pytest.warns(UserWarning, match="The closed form does not hold for this loss"):
                flatness(loss)
        else:
            flatness(loss)
        names.append(flatness.estimator)
    assert names == ["closed_form"] * 5 + ["hessian"] * 7


CUT: dict[str, Callable[[Tensor], Tensor]] = {
    "every second class": lambda z: z[:, ::2].reshape(-1, CLASSES),
    "classes by a mask": lambda z: z[:, torch.arange(CLASSES) % 2 == 0].reshape(-1, CLASSES),
    "entries by a mask": lambda z: z[torch.arange(z.numel()).view_as(z) % 2 == 0].view(-1, CLASSES),
    "one class of every row": lambda z: z.view(-1, CLASSES, CLASSES)[..., 0],
}


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("acts_in", ["loss", "backward pass"])
@pytest.mark.parametrize("name", CUT)
def test_rows_that_are_cut_are_not_those_of_the_softmax(
    name: str, acts_in: str, largest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many classes as the head has, but put together from the logits of several rows."""
    monkeypatch.setattr(f"{__name__}.CLASSES", 4)
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 3)
    model = nn.Sequential(nn.Linear(3, FEATURES), nn.Linear(FEATURES, CLASSES)).double()
    if largest:  # the logits that "one class of every row" reads are the largest of their rows
        nn.init.constant_(model[1].bias[:1], 30.0)
    flatness = RelativeFlatness(model, "1", "closed_form")
    with flatness.capture(0.1 if acts_in == "backward pass" else None):
        z = CUT[name](model(torch.randn(8, 3).double()))
    with pytest.warns(UserWarning, match="closed form does not hold"):
        flatness(F.cross_entropy(z, torch.arange(len(z)) % CLASSES))
