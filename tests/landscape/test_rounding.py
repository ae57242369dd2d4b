"""Numbers that are rounding are called so; the error bounds hold, by arithmetic of 60 digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_fam.landscape import HalfSquaredError, find_critical_point, split_certificate
from support.exact_splits import distance, eigenvalues, exact_b_and_d
from support.splits import mlp

LOSS = HalfSquaredError()


def labels(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(40, 2).double()
    y = torch.sign(x[:, :1] + 0.5 * x[:, 1:] + 0.6 * torch.randn(40, 1)).double()
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), x, y


def test_curvature_of_a_saturated_neuron_is_rounding() -> None:
    """The weights of this network go to infinity, and B to zero: float64 sees signs in what is left of it."""
    model, x, y = labels(16)
    model = find_critical_point(model, LOSS, (x, y)).model
    for neuron in (0, 1):
        certificate = split_certificate(model, LOSS, (x, y), "0", neuron, 1.5)
        exact = eigenvalues(exact_b_and_d(model, x, y, 0, neuron)[0])
        if max(abs(float(value)) for value in exact) < 1e-12:
            assert certificate.verdict.margin <= 1
        for ratio in (-1.0, 0.5, 1.5):
            assert certificate.judge(ratio).kind in ("zero within rounding", "undecided")


def extreme(kind: str, model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        if kind == "saturated":
            model[0].weight *= 30
        if kind == "large":
            model[-1].weight *= 1e6
        if kind == "fitted":
            y = model(x) + 1e-14 * torch.randn_like(y)
        if kind == "tiny":
            model[2].weight *= 1e-9
        if kind == "cancelling":
            x = x + 1e4
            model[0].weight[:, 1] = -model[0].weight[:, 0] * x[:, 0].mean() / x[:, 1].mean()
    return x, y


@pytest.mark.parametrize("kind", ["usual", "saturated", "large", "fitted", "tiny", "cancelling"])
@pytest.mark.parametrize("sizes", [(2, 3, 1), (2, 3, 2), (2, 3, 3, 2)])
def test_error_bounds_hold_and_are_no_larger_than_needed(kind: str, sizes: tuple[int, ...]) -> None:
    errors, bounds = [], []
    for seed in range(6):
        torch.manual_seed(seed)
        model = mlp(sizes)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        x, y = torch.randn(12, 2).double(), torch.randn(12, sizes[-1]).double()
        x, y = extreme(kind, model, x, y)
        layer = 2 * (len(sizes) - 3) if seed % 2 else 0
        certificate = split_certificate(model, LOSS, (x, y), str(layer), 1)
        b, d = exact_b_and_d(model, x, y, layer, 1)
        assert distance(certificate.B, b) <= certificate.errors.b
        if sizes[-1] > 1:
            assert distance(certificate.D, d) <= 2 * certificate.errors.d
        errors.append(distance(certificate.B, b))
        bounds.append(certificate.errors.b)
    assert sum(bounds) < 1e4 * sum(errors)


@pytest.mark.parametrize("seed", range(8))
def test_certain_verdicts_have_the_signs_of_exact_arithmetic(seed: int) -> None:
    """At critical points of small networks that random labels lead to, many of them nearly degenerate."""
    model, x, y = labels(100 + seed)
    model = find_critical_point(model, LOSS, (x, y)).model
    for neuron in (0, 1):
        certificate = split_certificate(model, LOSS, (x, y), "0", neuron)
        exact = eigenvalues(exact_b_and_d(model, x, y, 0, neuron)[0])
        if certificate.verdict.kind == "saddle" and "B is" in certificate.verdict.reason:
            assert exact[0] < 0
        if certificate.verdict.kind == "minimum":
            assert exact[0] > 0


def test_saturated_is_not_piecewise_linear() -> None:
    """sigma'' is exactly 0 in every row of a saturated tanh, and of ReLU; only ReLU does not bend anywhere."""
    torch.manual_seed(0)
    x = torch.randn(20, 2).double().abs() + 1
    y = torch.randn(20, 1).double()
    for activation, word, kind in (
        (nn.Tanh, "zero within rounding", "zero within rounding"),
        (nn.ReLU, "piecewise linear", "undecided"),
    ):
        model = mlp((2, 3, 1), activation)
        with torch.no_grad():
            model[0].weight.copy_(torch.full((3, 2), -40.0))
            model[2].weight.zero_()
            model[2].bias.copy_(y.mean(0))
        verdict = split_certificate(model, LOSS, (x, y), "0", 0).verdict
        assert word in verdict.reason and verdict.kind == kind


def test_a_perfect_fit_is_zero_within_rounding() -> None:
    """The residuals are rounding, so the relative gradient is large and means nothing."""
    torch.manual_seed(3)
    model, x = mlp((2, 3, 2)), torch.randn(20, 2).double()
    y = (model(x) + 1e-15 * torch.randn(20, 2)).detach()
    certificate = split_certificate(model, LOSS, (x, y), "0", 1)
    assert certificate.relative_gradient > 1 and certificate.verdict.kind == "zero within rounding"
