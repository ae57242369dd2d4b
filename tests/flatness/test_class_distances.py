"""kappa of a head of few classes from the distances of its classes, against the sum over pairs in float64."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.class_distances import flatness_from_distances
from hf_fam.flatness.log_probabilities import find_log_probabilities, weights_of

N, C, M = 7, 11, 3
LABELS = torch.tensor([0, 3, 3, 10, 1, 5, 0])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(secrets.randbits(32))


def case() -> list[Tensor]:
    """phi, z and W in float64, and c of both signs and 0."""
    c = torch.randn(N, dtype=torch.float64)
    c[2] = 0
    return [*(torch.randn(*s, dtype=torch.float64) for s in ((N, M), (N, C), (C, M))), c]


def by_pairs(phi: Tensor, z: Tensor, w: Tensor, c: Tensor, smoothing: float = 0.0) -> Tensor:
    """Var = 1/2 sum_kl p_k p_l ||w_k - w_l||^2, differentiated by autograd."""
    p = (1 - smoothing) * z.softmax(-1) + smoothing / z.shape[-1]
    squares = (w.unsqueeze(0) - w.unsqueeze(1)).square().sum(-1)
    return (c * phi.square().sum(-1)) @ torch.einsum("nk,nl,kl->n", p, p, squares) / 2


def from_distances(phi: Tensor, z: Tensor, w: Tensor, c: Tensor, smoothing: float = 0.0) -> Tensor:
    log_p = z.detach().to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1)
    return flatness_from_distances(phi, z, w, c, log_p, smoothing)


def with_gradients(kappa: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [kappa.detach(), *torch.autograd.grad(3 * kappa, inputs)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_value_and_gradients(smoothing: float) -> None:
    *inputs, c = case()
    inputs = [t.requires_grad_() for t in inputs]
    found, expected = (with_gradients(of(*inputs, c, smoothing), inputs) for of in (from_distances, by_pairs))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_is_trained_gets_a_gradient(wanted: int) -> None:
    *inputs, c = case()
    inputs[wanted].requires_grad_()
    found, expected = (torch.autograd.grad(of(*inputs, c), inputs[wanted]) for of in (from_distances, by_pairs))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


# With smoothing, float64 loses the digits of the reference beyond a margin of 36.
@pytest.mark.parametrize(
    ("margin", "smoothing"),
    [*((m, 0.0) for m in (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)), *((m, 0.1) for m in (0.0, 5.0, 10.0, 20.0))],
)
def test_confident_rows_are_exact_in_single_precision(margin: float, smoothing: float) -> None:
    """A lead of 20 leaves the other classes 1e-9 of the probability: below what float32 tells from 1."""
    phi, z, w, c = (t.float() for t in case())
    top = torch.randint(C, (N, 1))
    inputs = [phi, z.scatter(1, top, z.amax(1, keepdim=True) + margin), w]
    c = c.abs()
    found = with_gradients(from_distances(*(t.requires_grad_() for t in inputs), c, smoothing), inputs)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = with_gradients(by_pairs(*doubles, c.double(), smoothing), doubles)
    assert found[0] > 0
    for mine, true in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double() / true.norm(), true / true.norm(), rtol=0, atol=1e-5)


def test_a_common_offset_is_harmless() -> None:
    phi, z, w, c = (t.float() for t in case())
    offset = 100 * torch.randn(M)
    inputs = [t.requires_grad_() for t in (phi, z, w + offset)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    found, expected = (
        with_gradients(from_distances(*inputs, c), inputs),
        with_gradients(by_pairs(*doubles, c.double()), doubles),
    )
    for mine, true in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double() / true.norm(), true / true.norm(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Computed in float32; the gradients have the precision of what they belong to."""
    *inputs, c = case()
    inputs = [t.to(dtype).requires_grad_() for t in inputs]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    found, expected = with_gradients(from_distances(*inputs, c), inputs), with_gradients(by_pairs(*doubles, c), doubles)
    assert found[0].dtype == torch.float32 and all(t.dtype == dtype for t in found[1:])
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close([t.double() for t in found[1:]], expected[1:], rtol=2e-2, atol=2e-2)


Loss = Callable[[Tensor], Tensor]
CLASS_WEIGHTS = torch.linspace(-1, 2, C, dtype=torch.float64)
TRAINED = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))


def smoothed_by_hand(log_p: Tensor) -> Tensor:
    """As transformers' LabelSmoother does."""
    is_ignored = LABELS.unsqueeze(1) == 3
    right = log_p.gather(1, LABELS.unsqueeze(1)).masked_fill(is_ignored, 0.0)
    every_class = log_p.sum(-1, keepdim=True).masked_fill(is_ignored, 0.0)
    return -0.9 * right.sum() / 7 - 0.1 * every_class.sum() / 7


PROVEN: dict[str, Loss] = {
    "mean": lambda z: F.cross_entropy(z, LABELS),
    "scaled and shifted": lambda z: 2.0 - F.cross_entropy(z, LABELS, reduction="sum") / -3,
    "weights of both signs": lambda z: F.cross_entropy(z, LABELS, weight=CLASS_WEIGHTS, reduction="sum"),
    "rows of both signs": lambda z: (
        F.cross_entropy(z, LABELS, reduction="none") * torch.linspace(-1, 1, N).double()
    ).mean(),
    "ignored rows": lambda z: F.cross_entropy(z, LABELS.masked_fill(LABELS == 3, -100)),
    "soft labels": lambda z: F.cross_entropy(z, torch.linspace(0, 1, N * C).double().view(N, C)),
    "by hand": lambda z: -z.log_softmax(-1).gather(1, LABELS.unsqueeze(1)).sum(),
    "masked by hand": lambda z: z.log_softmax(-1)[torch.arange(N), LABELS].masked_fill(LABELS == 3, 0.0).sum(),
    "label smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1),
    "label smoothing by hand": lambda z: smoothed_by_hand(z.log_softmax(-1)),
    "logits in another shape": lambda z: F.cross_entropy(z.view(1, N, C).view(-1, C), LABELS),
}
UNPROVEN: dict[str, Loss] = {
    "a product": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1) * z.log_softmax(-1).mean(),
    "two softmaxes": lambda z: F.cross_entropy(z, LABELS) + F.cross_entropy(z, LABELS.flip(0)),
    "a trained term": lambda z: F.cross_entropy(z, LABELS) + TRAINED,
    "focal": lambda z: ((1 - z.softmax(-1)).square() * z.log_softmax(-1)).gather(1, LABELS.unsqueeze(1)).sum(),
    "squared": lambda z: F.cross_entropy(z, LABELS).square(),
    "inverse": lambda z: 1 / F.cross_entropy(z, LABELS),
    "a trained factor": lambda z: F.cross_entropy(z, LABELS) * TRAINED,
    "two terms": lambda z: F.cross_entropy(z, LABELS) + z.square().sum(),
    "a temperature": lambda z: F.cross_entropy(z / 2, LABELS),
    "rows by a mask": lambda z: F.cross_entropy(z[LABELS > 0], LABELS[LABELS > 0]),
    "over the rows": lambda z: -z.log_softmax(0).sum(),
    "no softmax": lambda z: z.square().sum(),
}


def weights_by_product(loss: Tensor, z: Tensor) -> Tensor:
    """c from the full Hessian of every row: the trace of ``c (diag p - p p^T)``."""
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    traces = torch.stack([torch.autograd.grad(first[:, k].sum(), z, retain_graph=True)[0][:, k] for k in range(C)])
    p = z.detach().softmax(-1)
    return traces.sum(0) / (p * (1 - p)).sum(-1)


@pytest.mark.parametrize("name", PROVEN)
def test_weights_of_a_proven_loss(name: str) -> None:
    z = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    loss = PROVEN[name](z)
    log_p = find_log_probabilities(loss, z)
    assert log_p is not None
    torch.testing.assert_close(log_p.values, z.detach().log_softmax(-1))
    torch.testing.assert_close(weights_of(loss, log_p), weights_by_product(loss, z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", UNPROVEN)
def test_losses_that_are_not_proven(name: str) -> None:
    z = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    assert find_log_probabilities(UNPROVEN[name](z), z) is None


def test_a_loss_in_half_precision_has_the_log_probabilities_of_the_logits() -> None:
    z = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(z.half(), LABELS)
    log_p = find_log_probabilities(loss, z)
    assert log_p is not None
    torch.testing.assert_close(log_p.values, z.detach().log_softmax(-1))
    torch.testing.assert_close(weights_of(loss, log_p), torch.full((N,), 1 / N), rtol=1e-3, atol=0.0)


def test_other_logits_are_not_taken_for_the_captured_ones() -> None:
    z, other = (torch.randn(N, C, requires_grad=True) * 1 for _ in range(2))
    assert find_log_probabilities(F.cross_entropy(other, LABELS), z) is None


def test_a_proven_loss_is_differentiated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product with the Hessian, neither at the first batch nor later."""
    model = nn.Sequential(nn.Linear(3, M), nn.Tanh(), nn.Linear(M, C))
    flatness, inputs = RelativeFlatness(model), torch.randn(N, 3)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a product with the Hessian")

    monkeypatch.setattr("hf_fam.flatness.head_loss.vector_products", refuse)
    for _ in range(4):
        with flatness.capture():
            loss = F.cross_entropy(model(inputs), LABELS)
        assert flatness(loss) > 0
