"""A model that is sure of every row, in float32: kappa and its gradients are those in float64, or there is a warning.

All rows lead by a margin, so kappa is as small as the other probabilities, and nothing else hides an error.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.log_probabilities import curvature_product

N, C = 16, 5
MARGINS = [0.0, 10.0, 17.0, 25.0, 40.0]
LABELS = torch.arange(N) % C


class Sure(nn.Module):
    """A hidden layer, and a head whose right class leads by a margin.

    Args:
        margin: of the right class.
        is_binary: whether the logits of the other classes are the negative margin.
    """

    def __init__(self, margin: float, *, is_binary: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head, self.margin, self.is_binary = nn.Linear(6, 9), nn.Linear(9, C), margin, is_binary

    def forward(self, x: Tensor) -> Tensor:
        is_right = F.one_hot(LABELS, C).to(x.dtype)
        lead = self.margin * (2 * is_right - 1 if self.is_binary else is_right)
        with torch.no_grad():  # features that make the head lead by so much
            shift = lead @ torch.linalg.pinv(self.head.weight.double()).T.to(x.dtype)
        return self.head(torch.tanh(self.hidden(x)) + shift)


def cross_entropy(z: Tensor) -> Tensor:
    return F.cross_entropy(z, LABELS)


def kappa_and_gradients(
    model: Sure, x: Tensor, layer: str, estimator: str, loss: Callable[[Tensor], Tensor] = cross_entropy
) -> tuple[Tensor, list[Tensor]]:
    flatness = RelativeFlatness(model, layer, estimator)
    flatness.seed(3)
    with flatness.capture():
        z = model(x)
    kappa = flatness(loss(z))
    gradients = torch.autograd.grad(kappa, [*model.parameters()], allow_unused=True)
    flatness.detach()
    return kappa, [torch.zeros(1, dtype=kappa.dtype) if g is None else g for g in gradients]


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(
    ("layer", "estimator"),
    [("head", "closed_form"), ("hidden", "gauss_newton"), ("hidden", "hessian"), ("head", "hessian")],
)
def test_float32_agrees_with_float64(layer: str, estimator: str, margin: float) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        x, model = torch.randn(N, 6), Sure(margin)
        kappa, gradients = kappa_and_gradients(model, x, layer, estimator)
        true, true_gradients = kappa_and_gradients(copy.deepcopy(model).double(), x.double(), layer, estimator)
        assert float(kappa) == pytest.approx(float(true), rel=1e-4)
        scale = max(float(g.abs().max()) for g in true_gradients)
        for found, expected in zip(gradients, true_gradients, strict=True):
            torch.testing.assert_close(found.double(), expected.expand_as(found), rtol=1e-3, atol=1e-4 * scale)


def gathered(values: Tensor) -> Tensor:
    return values.gather(1, LABELS.unsqueeze(1)).squeeze(1)


def focal_of_the_loss(losses: Tensor) -> Tensor:
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


TARGETS, SIGNS = F.one_hot(LABELS, C), 2 * F.one_hot(LABELS, C) - 1
# Losses that are precise themselves; in the binary ones, a logit has a sign of its own.
PRECISE: dict[str, Callable[[Tensor], Tensor]] = {
    "label smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1),
    "two calls": lambda z: 0.5 * F.cross_entropy(z[:8], LABELS[:8]) + F.cross_entropy(z[8:], LABELS[8:]),
    "log of softmax": lambda z: -gathered(z.softmax(-1).log()).mean(),
    "generalized": lambda z: ((1 - gathered(z.softmax(-1)) ** 0.7) / 0.7).mean(),
    "logsumexp": lambda z: (z.logsumexp(-1) - gathered(z)).mean(),
}
BINARY: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda z: F.binary_cross_entropy_with_logits(z, TARGETS.to(z.dtype)),
    "logsigmoid": lambda z: -F.logsigmoid(z * SIGNS).mean(),
    "softplus": lambda z: F.softplus(-z * SIGNS).mean(),
}
# These compute 1 - p, which is 0 in float32 and margins of 17.
ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "focal": lambda z: ((1 - gathered(z.softmax(-1))) ** 2 * -gathered(z.log_softmax(-1))).mean(),
    "focal of the loss": lambda z: focal_of_the_loss(F.cross_entropy(z, LABELS, reduction="none")),
    "Brier score": lambda z: (z.softmax(-1) - TARGETS).square().mean(),
    "squared error of sigmoids": lambda z: (z.sigmoid() - TARGETS).square().mean(),
}
POINTS = [("head", "hessian"), ("head", "closed_form"), ("hidden", "gauss_newton"), ("hidden", "hessian")]


def agrees_with_float64(
    model: Sure, layer: str, estimator: str, loss: Callable[[Tensor], Tensor], same: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(5)
    x = torch.randn(N, 6)
    kappa, gradients = kappa_and_gradients(model, x, layer, estimator, loss)
    true, true_gradients = kappa_and_gradients(copy.deepcopy(model).double(), x.double(), layer, estimator, same)
    assert float(kappa) == pytest.approx(float(true), rel=1e-4)
    scale = max(float(g.abs().max()) for g in true_gradients)
    for found, expected in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(found.double(), expected.expand_as(found), rtol=1e-3, atol=1e-4 * scale)


# Generalized cross-entropy has no closed form, and torch's softplus is linear from 20.
OTHERS = [
    (name, layer, estimator, margin)
    for name in [*PRECISE, *BINARY]
    for layer, estimator in POINTS
    for margin in MARGINS[1 : 3 if name == "softplus" else None]
    if (name, estimator) != ("generalized", "closed_form")
    and (name, layer, estimator) != ("logsumexp", "hidden", "hessian")  # warns, see below
]


@pytest.mark.parametrize(("name", "layer", "estimator", "margin"), OTHERS)
@pytest.mark.filterwarnings("error:kappa of")
def test_other_losses(name: str, layer: str, estimator: str, margin: float) -> None:
    loss = {**PRECISE, **BINARY}[name]
    agrees_with_float64(Sure(margin, is_binary=name in BINARY), layer, estimator, loss, loss)


@pytest.mark.parametrize(
    ("name", "layer"), [*((name, layer) for name in ROUNDED for layer in ("head", "hidden")), ("logsumexp", "hidden")]
)
def test_a_loss_that_rounds_warns_once_and_is_precise_with_wide_logits(name: str, layer: str) -> None:
    loss = {**PRECISE, **ROUNDED}[name]
    is_binary = name == "squared error of sigmoids"
    sure, unsure = Sure(17.0, is_binary=is_binary), Sure(5.0, is_binary=is_binary)
    x = torch.randn(N, 6)
    flatness = RelativeFlatness(sure, layer, "hessian")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with flatness.capture():
                z = sure(x)
            flatness(loss(z))
    flatness.detach()
    (warning,) = [str(w.message) for w in caught if "may be off" in str(w.message)]
    assert "logits.double()" in warning and f"'{layer}'" in warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees_with_float64(sure, layer, "hessian", lambda z: loss(z.double()), loss)
        kappa_and_gradients(unsure, x, layer, "hessian", loss)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("estimator", ["gauss_newton", "hessian"])
def test_hidden_layer_below_a_large_head(margin: float, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    test_float32_agrees_with_float64("hidden", estimator, margin)


@pytest.mark.parametrize(("layer", "estimator"), POINTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", MARGINS[:3])
def test_pure_float16_with_every_estimator(margin: float, smoothing: float, layer: str, estimator: str) -> None:
    """kappa and, scaled into float16's range as a gradient scaler does, its gradients."""

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, LABELS, label_smoothing=smoothing)

    torch.manual_seed(3)
    x, model = torch.randn(N, 6), Sure(margin)
    true, true_gradients = kappa_and_gradients(copy.deepcopy(model).double(), x.double(), layer, estimator, loss)
    flatness = RelativeFlatness(model.half(), layer, estimator)
    flatness.seed(3)
    with flatness.capture():
        z = model(x.half())
    kappa = flatness(loss(z))
    # A Hessian probe of a hidden layer is a sum of terms of both signs.
    assert float(kappa.detach()) == pytest.approx(float(true.detach()), rel=0.03)
    gradients = torch.autograd.grad(kappa / float(true.detach()), [*model.parameters()], allow_unused=True)
    norm, error = 0.0, 0.0
    for found, expected in zip(gradients, true_gradients, strict=True):
        expected = expected / float(true.detach())
        norm += float(expected.square().sum())
        error += float(((0.0 if found is None else found.double()) - expected).square().sum())
    assert error**0.5 < 0.03 * norm**0.5


@pytest.mark.parametrize("margin", MARGINS[:4])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.filterwarnings("error")  # a rejected closed form warns
def test_pure_float16(margin: float, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss, too, is computed in float16."""
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1 if large else C)
    torch.manual_seed(3)
    x, model = torch.randn(N, 6), Sure(margin)
    true, _ = kappa_and_gradients(copy.deepcopy(model).double(), x.double(), "head", "closed_form")
    flatness = RelativeFlatness(model.half(), "head", "closed_form")
    with flatness.capture():
        z = model(x.half())
    loss = F.cross_entropy(z, LABELS)
    assert loss.dtype == torch.float16
    assert float(flatness(loss).detach()) == pytest.approx(float(true.detach()), rel=0.01)


@pytest.mark.parametrize("margin", MARGINS)
def test_product_with_the_curvature(margin: float) -> None:
    """Every entry, against float64 arithmetic with twice the digits of the margin: the top class from the others."""
    torch.manual_seed(1)
    z = (torch.randn(N, C) + margin * F.one_hot(LABELS, C)).requires_grad_()
    c, v = torch.rand(N), torch.randn(N, C)
    p = z.detach().double().log_softmax(-1).exp()
    differences = v.double().unsqueeze(-1) - v.double().unsqueeze(-2)  # v_j - v_k
    expected = c.double().unsqueeze(-1) * p * torch.einsum("nk,njk->nj", p, differences)
    product = curvature_product(z, c, v)
    torch.testing.assert_close(product.double(), expected, rtol=1e-4, atol=0.0)
    z64 = z.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad((product * v).sum(), z)
    (true,) = torch.autograd.grad((curvature_product(z64, c.double(), v.double()) * v).sum(), z64)
    torch.testing.assert_close(gradient.double(), true, rtol=1e-3, atol=1e-5 * float(true.abs().max()))


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("acts_in", ["loss", "backward pass"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_head(acts_in: str, margin: float, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that the term adds, against the small head's in float64."""
    model = Sure(margin)
    torch.manual_seed(7)
    x = torch.randn(N, 6)
    true, true_gradients = kappa_and_gradients(copy.deepcopy(model).double(), x.double(), "head", "closed_form")
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    monkeypatch.setattr("hf_fam.flatness.chunks.CHUNK_ELEMENTS", 3 * C)
    monkeypatch.setattr("hf_fam.flatness.chunks.MAX_UNCHUNKED", 1)
    strength = 1.0 / float(true)

    def step(value: float) -> tuple[float, list[Tensor]]:
        flatness = RelativeFlatness(model, "head", "closed_form")
        with flatness.capture(value if acts_in == "backward pass" else None):
            z = model(x)
        loss = sign * F.cross_entropy(z, LABELS)
        kappa = flatness(loss)
        model.zero_grad()
        (loss if acts_in == "backward pass" else loss + value * kappa).backward()
        flatness.detach()
        return float(kappa.detach()), [p.grad.clone() for p in model.parameters()]

    kappa, with_term = step(strength)
    _, without = step(0.0)
    assert kappa == pytest.approx(sign * float(true), rel=1e-4)
    scale = max(float(g.abs().max()) for g in true_gradients) * strength
    for one, other, expected in zip(with_term, without, true_gradients, strict=True):
        expected = sign * strength * expected.expand_as(one)
        torch.testing.assert_close((one - other).double(), expected, rtol=1e-3, atol=1e-4 * scale)
