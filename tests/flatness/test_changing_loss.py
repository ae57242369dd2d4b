"""A loss that changes its form: kappa is right in every step, by the closed form or by probes.

The right value is that of the dense Hessian. The losses change at steps at which the schedule does not look.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.form_finder import FormFinder
from hf_fam.layer.feature_layer import FeatureLayer

N, C = 6, 4
Loss = Callable[[Tensor, int], Tensor]

_DRAW = torch.Generator().manual_seed(5)
LABELS = torch.randint(0, C, (N,), generator=_DRAW)
TARGET = torch.randn(N, C, generator=_DRAW, dtype=torch.float64)
BITS = torch.randint(0, 2, (N, C), generator=_DRAW).double()


def cross_entropy(z: Tensor, step: int = 0) -> Tensor:
    """By hand: torch's own is proven by its graph in every step, and needs no check."""
    return (z.logsumexp(-1) - z.gather(-1, LABELS[:, None]).squeeze(-1)).mean()


def squared_error(z: Tensor, step: int = 0) -> Tensor:
    return F.mse_loss(z, TARGET)


def sigmoid(z: Tensor, step: int = 0) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, BITS)


def distillation(z: Tensor, step: int = 0) -> Tensor:
    return -(TARGET.softmax(-1) * (z - z.logsumexp(-1, keepdim=True))).sum(-1).mean()


def contrastive(z: Tensor, step: int = 0) -> Tensor:
    return F.cross_entropy(z @ z.T, torch.arange(N))


def focal(z: Tensor, step: int = 0) -> Tensor:
    losses = F.cross_entropy(z, LABELS, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def confident(z: Tensor, step: int = 0) -> Tensor:
    """Cross-entropy scaled by the mean confidence, which couples the rows."""
    return F.cross_entropy(z, LABELS) * z.softmax(-1).max(-1).values.mean()


def mixture(first: Loss, second: Loss, change: int) -> Loss:
    """One graph for both: the numbers change, and the operations do not."""

    def loss(z: Tensor, step: int) -> Tensor:
        share = torch.tensor(float(step >= change), dtype=z.dtype)
        return (1 - share) * first(z) + share * second(z)

    return loss


def switched(first: Loss, second: Loss, change: int) -> Loss:
    return lambda z, step: first(z) if step < change else second(z)


def alternating(first: Loss, second: Loss, change: int) -> Loss:
    return lambda z, step: first(z) if step % 2 else second(z)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C)).double()


INPUTS = torch.randn(N, 3, generator=_DRAW, dtype=torch.float64)
FORMS = {
    "cross-entropy, squared error": (cross_entropy, squared_error),
    "squared error, cross-entropy": (squared_error, cross_entropy),
    "squared error, distillation": (squared_error, distillation),
    "sigmoid, cross-entropy": (sigmoid, cross_entropy),
    "cross-entropy, sigmoid": (cross_entropy, sigmoid),
}
OTHERS = {
    "cross-entropy, contrastive": (cross_entropy, contrastive),
    "cross-entropy, focal": (cross_entropy, focal),
    "squared error, contrastive": (squared_error, contrastive),
    "squared error, confident": (squared_error, confident),
    "sigmoid, focal": (sigmoid, focal),
}


def steps(loss_of: Loss, count: int, **given: Any) -> list[tuple[str, float, float]]:
    """Estimator, kappa and right value of every step."""
    model, found = network(), []
    flatness = RelativeFlatness(model, "2", "closed_form", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(count):
            with flatness.capture():
                z = model(INPUTS)
            loss = loss_of(z, step)
            kappa = float(flatness(loss))
            found.append((flatness.estimator, kappa, float(dense_flatness(loss, model[2].weight).kappa)))
    return found


@pytest.mark.parametrize("change", [5, 70])
@pytest.mark.parametrize("way", [mixture, switched, alternating], ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", FORMS)
def test_both_forms_are_closed(name: str, way: Callable[..., Loss], change: int) -> None:
    if way is mixture and change == 5 and "distillation" in name:
        pytest.skip("the mixture of the targets is one more form of cross-entropy")
    found = steps(way(*FORMS[name], change), change + 4)
    assert {estimator for estimator, *_ in found} == {"closed_form"}
    for _, kappa, right in found:
        assert kappa == pytest.approx(right, rel=1e-8)


@pytest.mark.parametrize("change", [5, 70])
@pytest.mark.parametrize("way", [mixture, switched, alternating], ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", OTHERS)
def test_second_form_is_not_closed(name: str, way: Callable[..., Loss], change: int) -> None:
    """From the step on in which it appears, probes take over."""
    found = steps(way(*OTHERS[name], change), change + 4)
    for estimator, kappa, right in found:
        assert estimator == "hessian" or kappa == pytest.approx(right, rel=1e-8)
    assert found[-1][0] == "hessian" and found[change - 1][0] == ("hessian" if way is alternating else "closed_form")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the finder looked."""
    found: list[int] = []
    look = FormFinder.look
    monkeypatch.setattr(FormFinder, "look", lambda *a: (found.append(1), look(*a))[1])
    return found


@pytest.mark.parametrize("name", [*FORMS, *OTHERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_shows_the_change(
    name: str, dtype: torch.dtype, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its derivatives alone: the graph is not compared here."""
    monkeypatch.setattr("hf_fam.flatness.form_finder.graph_signature", lambda loss, calls: ())
    first, second = {**FORMS, **OTHERS}[name]
    for seed in range(20):
        torch.manual_seed(seed)
        model = network().to(dtype)
        flatness = RelativeFlatness(model, "2", "closed_form")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(6):
                with flatness.capture():
                    z = model(3 * torch.randn(N, 3, dtype=dtype))
                looks.clear()
                flatness((first if step < 5 else second)(z).to(dtype))
        assert looks, f"{name} was not noticed, seed {seed}"


class Margins(nn.Module):
    """A head whose right class leads by a margin."""

    def __init__(self, margin: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.margin = nn.Linear(8, C).to(dtype), margin

    def forward(self) -> Tensor:
        weight, bias = self.head.weight.detach().double(), self.head.bias.detach().double()
        z = torch.randn(N, C, dtype=torch.float64).scatter_add(
            -1, LABELS[:, None], torch.full((N, 1), self.margin).double()
        )
        features = (z - bias) @ torch.linalg.pinv(weight).T
        return self.head(features.to(self.head.weight.dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", [0.0, 10.0, 17.0, 25.0])
@pytest.mark.parametrize("name", ["cross_entropy", "distillation", "squared_error", "sigmoid"])
def test_loss_that_does_not_change_is_looked_at_by_the_schedule_alone(
    name: str, margin: float, dtype: torch.dtype, looks: list[int]
) -> None:
    """Rounding is not taken for a change, for confident rows neither."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    for seed in range(10):
        torch.manual_seed(seed)
        model = Margins(margin, dtype)
        flatness = RelativeFlatness(model, "head", "closed_form")
        looks.clear()
        for _ in range(30):
            with flatness.capture():
                z = model()
            flatness(globals()[name](z.float() if is_half else z))
        assert flatness.estimator == "closed_form"
        if not (dtype == torch.float16 and margin == 25):  # where second derivatives are rounded to 0
            assert len(looks) == 6, "0, 1, 2, 4, 8 and 16"


def test_batch_that_is_not_finite_is_no_other_form() -> None:
    """NaN in a step at which the schedule looks; the log reports it."""
    model = network()
    flatness = RelativeFlatness(model, "2", "closed_form")
    for step in range(6):
        with flatness.capture():
            z = model(INPUTS * (float("nan") if step in (0, 4) else 1.0))
        kappa = flatness(cross_entropy(z))
        assert bool(kappa.isnan()) == (step in (0, 4)) or step == 0
    assert flatness.estimator == "closed_form"


class Elsewhere:
    """Tensors of a device that must not be waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        is_off = FormFinder.is_off

        def deferred(finder: FormFinder, checks: Any) -> bool:
            moved = torch.stack([*checks]).any()
            finder._is_off = moved if finder._is_off is None else finder._is_off | moved
            return False

        assert is_off is not deferred
        monkeypatch.setattr(FormFinder, "is_off", deferred)


def test_where_a_device_has_to_be_waited_for_the_next_log_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Elsewhere(monkeypatch)
    model = network()
    flatness = RelativeFlatness(model, "2", "closed_form")
    loss_of = mixture(cross_entropy, squared_error, 5)
    kappas = []
    for step in range(12):
        with flatness.capture():
            z = model(INPUTS)
        loss = loss_of(z, step)
        kappas.append((float(flatness(loss)), float(dense_flatness(loss, model[2].weight).kappa)))
        if step == 9:  # the schedule looked at step 8, which needs no log
            continue
        if step == 6:
            with pytest.warns(UserWarning, match="The loss at '2' changed its form. The flatness term was 0"):
                flatness.read_checks()
        else:
            flatness.read_checks() if step < 5 else None
    assert all(kappa == pytest.approx(right, rel=1e-8) for kappa, right in kappas[:5] + kappas[7:])


def test_form_that_changes_again_and_again_is_left_to_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    Elsewhere(monkeypatch)
    model = network()
    flatness = RelativeFlatness(model, "2", "closed_form")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(40):
            with flatness.capture():
                z = model(INPUTS)
            share = float(step % 2)
            flatness(share * cross_entropy(z) + (1 - share) * squared_error(z))
            flatness.read_checks()
    assert flatness.estimator == "hessian"


def test_layer_names_itself_in_the_warning() -> None:
    assert FeatureLayer(network(), "2").name == "2"
