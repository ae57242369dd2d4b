"""The smoothed kappa against its definition: the curvature of the same loss at the logits of smoothed probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach
from hf_fam.flatness.softmax_head import softmax_flatness
from support import definition

ROWS, FEATURES, CLASSES, EPS = 6, 4, 7, 0.1
LABELS = torch.tensor([0, 3, 3, 6, 1, 5])
TARGETS = torch.rand(ROWS, CLASSES).double().softmax(-1)
BINARY = (torch.rand(ROWS, CLASSES) > 0.5).double()
WEIGHTS = torch.linspace(0.2, 2, CLASSES).double()
SCALE = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
Loss = Callable[[Tensor], Tensor]

SOFTMAX: dict[str, Loss] = {
    "mean": lambda z: F.cross_entropy(z, LABELS),
    "negative": lambda z: F.cross_entropy(z, LABELS, reduction="sum") / -3,
    "label smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.2),
    "class weights": lambda z: F.cross_entropy(z, LABELS, weight=WEIGHTS),
    "class weights and label smoothing": lambda z: F.cross_entropy(z, LABELS, weight=WEIGHTS, label_smoothing=0.2),
    "soft labels": lambda z: F.cross_entropy(z, TARGETS),
    "distillation and labels": lambda z: (
        F.kl_div(z.log_softmax(-1), TARGETS, reduction="batchmean") + F.cross_entropy(z, LABELS)
    ),
    "without torch's log_softmax": lambda z: (z.logsumexp(-1) - z.gather(1, LABELS[:, None])[:, 0]).mean(),
    "rows by number": lambda z: F.cross_entropy(z[[0, 2, 5]], LABELS[[0, 2, 5]]),
    "a row twice": lambda z: F.cross_entropy(z[[0, 0, 1]], LABELS[[0, 1, 2]]),
    "ignored rows": lambda z: F.cross_entropy(z, LABELS.masked_fill(LABELS == 3, -100)),
    "advantages": lambda z: (
        F.cross_entropy(z, LABELS, reduction="none") * torch.linspace(-1, 1, ROWS).double()
    ).mean(),
    "a learned uncertainty": lambda z: F.cross_entropy(z, LABELS) * (-SCALE).exp() + SCALE,
}
SIGMOID: dict[str, Loss] = {
    "mean": lambda z: F.binary_cross_entropy_with_logits(z, BINARY),
    "weights": lambda z: F.binary_cross_entropy_with_logits(z, BINARY, weight=WEIGHTS, pos_weight=3 * WEIGHTS),
    "sum of columns": lambda z: F.binary_cross_entropy_with_logits(z[:, 2:], BINARY[:, 2:], reduction="sum"),
    "by hand": lambda z: -(BINARY * F.logsigmoid(z) + (1 - BINARY) * F.logsigmoid(-z)).mean(),
    "a learned uncertainty": lambda z: F.binary_cross_entropy_with_logits(z, BINARY) * (-SCALE).exp() + SCALE,
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(secrets.randbits(32))


def smoothed_logits(z: Tensor, eps: float = EPS) -> Tensor:
    """Logits whose softmax is ``(1 - eps) p + eps / C``."""
    return ((1 - eps) * z.softmax(-1) + eps / z.shape[-1]).log()


def smoothed_sigmoid_logits(z: Tensor) -> Tensor:
    return ((1 - EPS) * z.sigmoid() + EPS / 2).logit()


def true_kappa(loss_of: Loss, phi: Tensor, layer: nn.Linear, smoothed: Loss, mean: Tensor | float = 0.0) -> Tensor:
    """``sum <w_k, w_l> <phi_i, phi_j> d2L/dz_ik dz_jl``, with the full Hessian at the smoothed logits.

    phi is measured from a mean.
    """
    z = smoothed(F.linear(phi, layer.weight, layer.bias))
    (first,) = torch.autograd.grad(loss_of(z), z, create_graph=True)
    kappa = torch.zeros((), dtype=phi.dtype)
    for i in range(ROWS):
        for k in range(CLASSES):
            (row,) = torch.autograd.grad(first[i, k], z, create_graph=True)
            kappa = (
                kappa + (((phi - mean) @ (phi[i] - mean)).unsqueeze(1) * row * (layer.weight @ layer.weight[k])).sum()
            )
    return kappa


def network(scale: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(nn.Linear(3, FEATURES), nn.Tanh(), nn.Linear(FEATURES, CLASSES)).double()
    with torch.no_grad():
        model[2].weight *= scale
    return model, torch.randn(ROWS, 3).double()


def check(loss_of: Loss, smoothed: Loss, estimator: str = "closed_form", **options: float) -> RelativeFlatness:
    model, inputs = network()
    wanted = [*model.parameters(), SCALE]
    flatness = RelativeFlatness(model, "2", estimator, smoothing=EPS, **options)
    with flatness.capture():
        logits = model(inputs)
    kappa = flatness(loss_of(logits))
    expected = true_kappa(loss_of, model[:2](inputs), model[2], smoothed)
    torch.testing.assert_close(kappa, expected, rtol=1e-8, atol=1e-12)
    found, true = (torch.autograd.grad(y, wanted, allow_unused=True, materialize_grads=True) for y in (kappa, expected))
    torch.testing.assert_close(found, true, rtol=1e-7, atol=1e-11)
    return flatness


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - large)
    assert check(SOFTMAX[name], smoothed_logits).estimator == "closed_form"


@pytest.mark.parametrize("name", SIGMOID)
def test_sigmoid(name: str) -> None:
    assert check(SIGMOID[name], smoothed_sigmoid_logits).estimator == "closed_form"


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_centered(name: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - large)
    loss_of, smoothed = {
        "softmax": (SOFTMAX["class weights"], smoothed_logits),
        "sigmoid": (SIGMOID["weights"], smoothed_sigmoid_logits),
    }[name]
    model, inputs = network()
    flatness = RelativeFlatness(model, "2", "closed_form", smoothing=EPS, center=True)
    with flatness.capture():  # the first batch shows the mean
        flatness(loss_of(model(inputs + 1)))
    mean = model[:2](inputs + 1).mean(0).detach()
    with flatness.capture():
        logits = model(inputs)
    kappa = flatness(loss_of(logits))
    expected = true_kappa(loss_of, model[:2](inputs), model[2], smoothed, mean)
    torch.testing.assert_close(kappa, expected, rtol=1e-8, atol=1e-12)
    found, true = (torch.autograd.grad(y, [*model.parameters()]) for y in (kappa, expected))
    torch.testing.assert_close(found, true, rtol=1e-7, atol=1e-11)


def test_a_squared_error_needs_none() -> None:
    check(lambda z: F.mse_loss(z, TARGETS), lambda z: z)


def test_another_elementwise_loss_is_refused() -> None:
    model, inputs = network()
    flatness = RelativeFlatness(model, smoothing=EPS)
    with flatness.capture():
        loss = F.poisson_nll_loss(model(inputs), BINARY)
    with pytest.raises(ValueError, match=r"smoothing \(fam_smoothing\) is defined for softmax .* set it to 0"):
        flatness(loss)


@pytest.mark.parametrize("name", ["mean", "negative", "class weights", "ignored rows"])
def test_in_the_backward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - 1)
    model, inputs = network()
    strength = 0.2
    flatness = RelativeFlatness(model, "2", "closed_form", smoothing=EPS)
    with flatness.capture(strength):
        loss = SOFTMAX[name](model(inputs))
    kappa = flatness(loss)
    (loss + strength * kappa).backward()
    true = true_kappa(SOFTMAX[name], model[:2](inputs), model[2], smoothed_logits)
    total = SOFTMAX[name](model(inputs)) + strength * true
    torch.testing.assert_close(kappa, true.detach(), rtol=1e-8, atol=1e-12)
    expected = torch.autograd.grad(total, [*model.parameters()])
    torch.testing.assert_close([p.grad for p in model.parameters()], [*expected], rtol=1e-7, atol=1e-11)


def test_attach() -> None:
    model, inputs = network()
    attached = attach(model, 0.2, smoothing=EPS)
    SOFTMAX["mean"](model(inputs)).backward()
    true = true_kappa(SOFTMAX["mean"], model[:2](inputs), model[2], smoothed_logits)
    assert attached.kappa() == pytest.approx(float(true.detach()), rel=1e-8)
    attached.detach()
    expected = torch.autograd.grad(SOFTMAX["mean"](model(inputs)) + 0.2 * true, [*model.parameters()])
    torch.testing.assert_close([p.grad for p in model.parameters()], [*expected], rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("loss_of", [SOFTMAX["class weights"], SIGMOID["weights"]], ids=["softmax", "sigmoid"])
def test_hidden_layer(loss_of: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gauss-Newton, all probes of a complete basis: ``J^T H J`` with H at the smoothed logits."""
    definition.complete_basis(monkeypatch, 3)
    smoothed = smoothed_logits if loss_of is SOFTMAX["class weights"] else smoothed_sigmoid_logits
    model, inputs = network()
    flatness = RelativeFlatness(model, "0", "gauss_newton", probes=3, smoothing=EPS)
    with flatness.capture():
        logits = model(inputs)
    kappa = flatness(loss_of(logits))
    hidden = model[0](inputs)
    z = smoothed(model[1:](hidden))
    (first,) = torch.autograd.grad(loss_of(z), z, create_graph=True)
    slopes = 1 - hidden.tanh().square()
    jacobian = model[2].weight * slopes.unsqueeze(1)  # of the logits by z of every row
    moved = jacobian @ model[0].weight  # (rows, classes, inputs)
    true = torch.zeros((), dtype=torch.float64)
    for i in range(ROWS):
        for k in range(CLASSES):
            (row,) = torch.autograd.grad(first[i, k], z, create_graph=True)
            true = true + inputs[i].square().sum() * (row[i] @ moved[i] @ moved[i, k])
    torch.testing.assert_close(kappa, true, rtol=1e-8, atol=1e-12)
    found, expected = (torch.autograd.grad(y, [*model.parameters()]) for y in (kappa, true))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-11)


def test_hidden_layer_under_a_loss_that_cannot_be_smoothed() -> None:
    model, inputs = network()
    flatness = RelativeFlatness(model, "0", "gauss_newton", smoothing=EPS)

    def focal(z: Tensor) -> Tensor:
        p = z.softmax(-1).gather(1, LABELS[:, None])
        return -((1 - p) ** 2 * p.log()).mean()

    with flatness.capture():
        logits = model(inputs)
    with pytest.warns(UserWarning, match=r"kappa of '0' is not smoothed"):
        flatness(focal(logits)).backward()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0, 1e5])
@pytest.mark.parametrize("loss_of", [SOFTMAX["mean"], SIGMOID["mean"]], ids=["softmax", "sigmoid"])
def test_overconfident_rows_in_single_precision(loss_of: Loss, scale: float) -> None:
    """Item weights come from the graph, where the gradient by the logits is zero: all probabilities are 0 or 1."""
    model, inputs = network(scale)
    model = model.float()
    flatness = RelativeFlatness(model, smoothing=EPS)
    if scale > 30:  # a random batch shows the form of the loss first
        small, _ = network()
        model[2].load_state_dict({k: v.float() for k, v in small[2].state_dict().items()})
        with flatness.capture():
            logits = model(inputs.float())
        flatness(loss_of(logits))
        with torch.no_grad():
            model[2].weight *= scale
    flatness._checks._recheck_schedule._calls = 70  # between two looks
    with flatness.capture():
        logits = model(inputs.float())
    kappa = flatness(loss_of(logits))
    model = model.double()
    smoothed = smoothed_logits if loss_of is SOFTMAX["mean"] else smoothed_sigmoid_logits
    true = true_kappa(loss_of, model[:2](inputs), model[2], smoothed)
    assert true > 0
    torch.testing.assert_close(kappa.double(), true, rtol=1e-4, atol=0)


def test_smoothing_bounds_kappa_from_below() -> None:
    """``Var_q(w) >= eps Var_u(w)``, with equality as p approaches a single class whose row is the mean."""
    phi, w, c = torch.randn(ROWS, FEATURES), torch.randn(CLASSES, FEATURES), torch.rand(ROWS)
    z = torch.randn(ROWS, CLASSES).scatter(1, LABELS.unsqueeze(1), 60.0)
    floor = EPS * (c @ phi.square().sum(-1)) * w.var(0, correction=0).sum()
    assert softmax_flatness(phi, z, w, c) < 0.1 * floor
    assert softmax_flatness(phi, z, w, c, smoothing=EPS) > floor
    w[0] = w[1:].mean(0)
    z = torch.full((ROWS, CLASSES), -200.0)
    z[:, 0] = 0
    floor = EPS * (c @ phi.square().sum(-1)) * w.var(0, correction=0).sum()
    torch.testing.assert_close(softmax_flatness(phi, z, w, c, smoothing=EPS), floor)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), float("inf"), True, "0.1"])
def test_values_out_of_range(value: object) -> None:
    for make in (
        lambda: RelativeFlatness(network()[0], smoothing=value),
        lambda: attach(network()[0], 0, smoothing=value),
    ):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^smoothing=.*: give a number of at least 0 and below 1"):
            make()


@pytest.mark.parametrize("estimator", ["hessian", "perturbation", "dense"])
def test_estimators_that_cannot_smooth(estimator: str) -> None:
    with pytest.raises(
        ValueError, match=rf'smoothing=0.1 \(fam_smoothing\) is not possible with estimator="{estimator}"'
    ):
        RelativeFlatness(network()[0], estimator=estimator, smoothing=EPS)


def frozen_below(head: nn.Module, width: int = FEATURES) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(width, head.in_features), nn.Tanh(), head).double()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("arguments", "classes", "is_frozen", "expected"),
    [
        ({}, CLASSES, True, EPS),
        ({"estimator": "row_probes"}, CLASSES, True, EPS),
        ({"smoothing": 0.0}, CLASSES, True, 0.0),
        ({"smoothing": 0.3}, CLASSES, True, 0.3),
        ({"estimator": "hessian"}, CLASSES, True, 0.0),
        ({}, CLASSES, False, 0.0),
        ({"layer": "0"}, CLASSES, False, 0.0),
        ({}, 5000, True, 0.0),
    ],
)
def test_default_of_a_head_that_is_trained_alone(
    arguments: dict[str, object], classes: int, is_frozen: bool, expected: float
) -> None:
    model = frozen_below(nn.Linear(FEATURES, classes))
    model.requires_grad_(True) if not is_frozen else None
    flatness = RelativeFlatness(model, **{"smoothing": None, **arguments})
    assert flatness.method.smoothing == expected and not flatness.is_outdated
    if "smoothing" not in arguments and "layer" not in arguments and classes == CLASSES:
        model[0].requires_grad_(is_frozen)  # the other way round
        assert flatness.is_outdated == ("estimator" not in arguments or arguments["estimator"] == "row_probes")


LOSSES: dict[str, tuple[Loss, bool]] = {
    "softmax": (SOFTMAX["mean"], True),
    "sigmoid": (SIGMOID["mean"], True),
    "squared error": (lambda z: (z - TARGETS).square().mean(), False),
    "Poisson": (lambda z: F.poisson_nll_loss(z, TARGETS), False),
    "squared cross-entropy": (lambda z: F.cross_entropy(z, LABELS) ** 2, False),
}


@pytest.mark.filterwarnings("ignore:The closed form does not hold")
@pytest.mark.parametrize("name", LOSSES)
def test_the_default_smooths_what_has_a_smoothed_curvature(name: str) -> None:
    loss, is_smoothed = LOSSES[name]
    model, x = frozen_below(nn.Linear(FEATURES, CLASSES)), torch.randn(ROWS, FEATURES).double()

    def kappa(smoothing: float | None) -> Tensor:
        flatness = RelativeFlatness(model, generator=torch.Generator().manual_seed(0), smoothing=smoothing)
        for _ in range(3):
            with flatness.capture():
                value = loss(model(x))
            result = flatness(value)
        flatness.detach()
        return result

    torch.testing.assert_close(kappa(None), kappa(EPS if is_smoothed else 0.0))
    assert (abs(kappa(EPS if is_smoothed else 0.0) - kappa(0.0)) > 1e-6) == is_smoothed
