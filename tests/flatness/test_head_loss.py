"""Closed forms of the head against the dense Hessian, for every loss that they claim."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.head_loss import NoClosedForm, recognize
from hf_fam.flatness.loss_derivatives import weights_from_gradient, weights_from_product
from hf_fam.flatness.softmax_head import softmax_flatness
from support.gradients import assert_same_gradients

N, T, C, M = 6, 4, 3, 4


def network(outputs: int = C) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, M), nn.Tanh(), nn.Linear(M, outputs)).double()


def items(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, dtype=torch.float64)


def labels(*shape: int, classes: int = C) -> Tensor:
    return torch.randint(0, classes, shape)


def focal(z: Tensor, y: Tensor) -> Tensor:
    ce = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def ignoring(y: Tensor) -> Tensor:
    y = y.clone()
    y.view(-1)[::3] = -100
    return y


def shifted(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[:, :-1].reshape(-1, z.shape[-1]), y[:, 1:].reshape(-1), ignore_index=-100)


def softmax_losses() -> dict[str, tuple[tuple[int, ...], int, Callable[[Tensor], Tensor]]]:
    y, y2, tokens = labels(N), labels(N, classes=2), labels(N, T)
    weights, soft = torch.rand(C, dtype=torch.float64) + 0.1, torch.rand(N, C, dtype=torch.float64).softmax(-1)
    teacher = torch.randn(N, C, dtype=torch.float64)
    return {
        "mean": ((N,), C, lambda z: F.cross_entropy(z, y)),
        "sum": ((N,), C, lambda z: F.cross_entropy(z, y, reduction="sum")),
        "two classes": ((N,), 2, lambda z: F.cross_entropy(z, y2)),
        "many classes": ((N,), 12, lambda z: F.cross_entropy(z, y)),
        "one item": ((1,), C, lambda z: F.cross_entropy(z, y[:1])),
        "ignore_index": ((N,), C, lambda z: F.cross_entropy(z, ignoring(y))),
        "class weights": ((N,), C, lambda z: F.cross_entropy(z, y, weight=weights)),
        "label smoothing": ((N,), C, lambda z: F.cross_entropy(z, y, label_smoothing=0.1)),
        "class weights and smoothing": ((N,), C, lambda z: F.cross_entropy(z, y, weight=weights, label_smoothing=0.2)),
        "soft labels": ((N,), C, lambda z: F.cross_entropy(z, soft)),
        "distillation": ((N,), C, lambda z: F.kl_div(z.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")),
        "tokens": ((N, T), C, lambda z: F.cross_entropy(z.view(-1, C), ignoring(tokens).view(-1))),
        "shifted tokens": ((N, T), C, lambda z: shifted(z, ignoring(tokens))),
        "scaled": ((N,), C, lambda z: 65536 * F.cross_entropy(z, y) / 7),
        "item weights": ((N,), C, lambda z: (F.cross_entropy(z, y, reduction="none") * torch.arange(6.0)).sum()),
        "added constant gradient": ((N,), C, lambda z: F.cross_entropy(z, y) + 0.3 * z.sum()),
    }


def elementwise_losses() -> dict[str, tuple[tuple[int, ...], int, Callable[[Tensor], Tensor]]]:
    y, target = torch.randint(0, 2, (N, C)).double(), torch.randn(N, C, dtype=torch.float64)
    pos = torch.rand(C, dtype=torch.float64) + 0.5
    return {
        "sigmoid": ((N,), C, lambda z: F.binary_cross_entropy_with_logits(z, y)),
        "sigmoid pos_weight": ((N,), C, lambda z: F.binary_cross_entropy_with_logits(z, y, pos_weight=pos)),
        "sigmoid one output": ((N,), 1, lambda z: F.binary_cross_entropy_with_logits(z, y[:, :1])),
        "squared error": ((N,), C, lambda z: F.mse_loss(z, target)),
        "regression": ((N,), 1, lambda z: F.mse_loss(z.squeeze(-1), target[:, 0])),
        "squared error of tokens": ((N, T), C, lambda z: F.mse_loss(z, target[:, None].expand(-1, T, -1))),
        "huber": ((N,), C, lambda z: F.huber_loss(z, target, delta=0.7)),
        "poisson": ((N,), C, lambda z: F.poisson_nll_loss(z, y)),
    }


def run(shape: tuple[int, ...], outputs: int, loss_of: Callable[[Tensor], Tensor], estimator: str, **kwargs: str):
    model, inputs = network(outputs), items(*shape)
    flatness = RelativeFlatness(model, estimator=estimator, **kwargs)
    with flatness.capture():
        logits = model(inputs)
    loss = loss_of(logits)
    return model, flatness, loss


@pytest.mark.parametrize("gradient", ["full", "weights_only"])
@pytest.mark.parametrize("name", [*softmax_losses(), *elementwise_losses()])
@pytest.mark.filterwarnings("error")
def test_closed_form_equals_dense(name: str, gradient: str) -> None:
    torch.manual_seed(secrets.randbits(32))
    shape, outputs, loss_of = {**softmax_losses(), **elementwise_losses()}[name]
    model, flatness, loss = run(shape, outputs, loss_of, "closed_form", gradient=gradient)
    kappa = flatness(loss)
    true = dense_flatness(loss, model[2].weight, weights_only=gradient == "weights_only").kappa
    torch.testing.assert_close(kappa, true, rtol=1e-10, atol=1e-13)
    assert_same_gradients(model, kappa, true)
    assert flatness.estimator == "closed_form"


@pytest.mark.parametrize("name", softmax_losses())
def test_both_ways_to_the_item_weights(name: str) -> None:
    """From a product they hold for any labels, from the gradient for hard ones."""
    shape, outputs, loss_of = softmax_losses()[name]
    z = torch.randn(*shape, outputs, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(loss_of(z), z, create_graph=True)
    product, gradient = weights_from_product(first, z), weights_from_gradient(first, z.softmax(-1))
    hard = name not in (
        "label smoothing", "class weights and smoothing", "soft labels", "distillation", "added constant gradient",
    )  # fmt: skip
    assert torch.allclose(product, gradient, rtol=1e-9, atol=1e-12) == hard


def other_losses() -> dict[str, Callable[[Tensor], Tensor]]:
    y = labels(N)
    return {
        "focal": lambda z: focal(z, y),
        "focal of two classes": lambda z: focal(z[:, :2], y.clamp(max=1)),
        "temperature": lambda z: F.cross_entropy(z / 2, y),
        "squared margin": lambda z: (1 + z - z[:, :1]).relu().square().mean(),
        "choices": lambda z: F.cross_entropy(z.view(-1, 3), labels(2)),
        "penalty on the logits": lambda z: F.cross_entropy(z, y) + 0.01 * z.logsumexp(-1).square().mean(),
        "covariance": lambda z: z.T.cov().square().sum(),
    }


@pytest.mark.parametrize("name", other_losses())
def test_any_other_loss_falls_back_to_probes_and_says_so(name: str) -> None:
    torch.manual_seed(0)
    outputs = {"focal of two classes": 2, "choices": 1}.get(name, C)
    _, flatness, loss = run((N,), outputs, other_losses()[name], "auto")
    with pytest.warns(UserWarning, match="closed form does not hold for this loss at '2'.*Hessian probes") as caught:
        flatness(loss)
    assert len(caught) == 1
    assert flatness.estimator == "hessian"


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 77])
def test_confident_logits_are_recognized_in_float32(scale: float, classes: int) -> None:
    """A model that has converged must not lose its closed form to rounding."""
    for _ in range(5):
        z = (scale * torch.randn(64, classes)).requires_grad_()
        assert recognize(F.cross_entropy(z, labels(64, classes=classes)), z).kind == "softmax"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 3, 77])
def test_half_precision_is_recognized_and_focal_loss_still_is_not(dtype: torch.dtype, classes: int) -> None:
    y = labels(32, classes=classes)
    z = torch.randn(32, classes).to(dtype).requires_grad_()
    assert recognize(F.cross_entropy(z, y), z).kind == "softmax"
    assert recognize(F.cross_entropy(z.float(), y), z).kind == "softmax"
    with pytest.raises(NoClosedForm):
        recognize(focal(z.float(), y), z)


def test_a_layer_that_is_not_the_head_has_no_closed_form() -> None:
    """The structure of this model does not show which layer is the head, but the first loss does."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(3, M).double(), nn.Linear(M, C).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.hidden(x).tanh())

    model = Model()
    flatness = RelativeFlatness(model, "hidden", "closed_form")
    with flatness.capture():
        logits = model(items(N))
    with pytest.raises(ValueError, match=r"'hidden' has no closed form.*gauss_newton"):
        flatness(F.cross_entropy(logits, labels(N)))


def test_large_vocabulary_reads_the_weights_off_the_gradient() -> None:
    z = torch.randn(3, 5000, dtype=torch.float64, requires_grad=True)
    assert recognize(F.cross_entropy(z, labels(3, classes=5000)), z).item_weights == "gradient"
    assert recognize(F.cross_entropy(z, labels(3, classes=5000), label_smoothing=0.1), z).item_weights == "product"


def test_a_loss_that_changes_later_is_noticed() -> None:
    model = network()
    flatness, y = RelativeFlatness(model), labels(N)
    with pytest.warns(UserWarning, match="closed form does not hold"):
        for step in range(120):
            with flatness.capture():
                logits = model(items(N))
            flatness(F.cross_entropy(logits, y) if step < 50 else focal(logits, y))


def test_adding_a_vector_to_all_rows_changes_nothing() -> None:
    """The softmax does not see it, and neither does kappa, to rounding even in float32."""
    phi, z, w, c = torch.randn(5, 4), torch.randn(5, 3), torch.randn(3, 4), torch.rand(5)
    moved = softmax_flatness(phi, z, w + 1000 * torch.randn(4), c)
    torch.testing.assert_close(moved, softmax_flatness(phi, z, w, c), rtol=1e-3, atol=0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_batch_without_curvature_proves_nothing(outputs: int) -> None:
    """Far from its targets Huber's loss is a straight line; near them kappa is what a fresh look says."""
    model, x = network(outputs), items(N)
    flatness, fresh = RelativeFlatness(model), RelativeFlatness(model)

    def kappa(of: RelativeFlatness, off: float) -> Tensor:
        with of.capture():
            z = model(x)
        return of(F.huber_loss(z, z.detach() + off)).detach()

    with pytest.warns(UserWarning, match="exactly 0 here"):
        assert kappa(flatness, 5.0) == 0
    assert kappa(flatness, 0.3) == kappa(fresh, 0.3) > 0
    for _ in range(200):  # two rechecks find nothing, and take nothing back
        assert kappa(flatness, 5.0) == 0
    assert kappa(flatness, 0.3) == kappa(fresh, 0.3)


@pytest.mark.parametrize("gap", [1.0, 4.0, 8.0])
def test_two_sure_classes_in_half_precision_stay_cross_entropy(gap: float) -> None:
    for _ in range(5):
        z = (gap * torch.randn(64, 2)).half().requires_grad_()
        form = recognize(F.cross_entropy(z, z.argmax(-1)), z)
        assert form is not None and form.kind == "softmax"
        with pytest.raises(NoClosedForm):
            recognize(focal(z.float(), z.argmax(-1)), z)
