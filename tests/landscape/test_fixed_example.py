"""The fixed example: one tanh neuron without bias that learns 2 tanh x - tanh 4x, split at .25, .5 and 1.5."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hf_fam.landscape import HalfSquaredError, escape_path, find_critical_point, split_certificate, split_neuron
from support.splits import full_hessian, inertia, mlp

X = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
Y = 2 * X.tanh() - (4 * X).tanh()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return find_critical_point(mlp((1, 1, 1), bias=False), HalfSquaredError(), (X, Y)).model


def loss_of(model: nn.Module) -> Tensor:
    return HalfSquaredError()(model(X), Y)


def test_to_six_digits(trained: nn.Module) -> None:
    certificate = split_certificate(trained, HalfSquaredError(), (X, Y), "0", neuron=0)
    sign = -1 if trained[0].weight > 0 else 1  # (u, v) and (-u, -v) are the same function
    assert sign * trained[0].weight.item() == pytest.approx(-0.414081, abs=5e-7)
    assert sign * trained[2].weight.item() == pytest.approx(-1.269334, abs=5e-7)
    assert certificate.loss == pytest.approx(0.513460, abs=5e-7)
    assert certificate.B.item() == pytest.approx(0.951303, abs=5e-7)
    assert abs(certificate.D.item()) < 1e-10
    kinds = {ratio: certificate.judge(ratio).kind for ratio in (-0.5, 0.25, 0.5, 1.5)}
    assert kinds == {-0.5: "saddle", 0.25: "minimum", 0.5: "minimum", 1.5: "saddle"}


def gradient_descent(trained: nn.Module, ratios: list[float], runs: int, steps: int = 20_000) -> Tensor:
    """Plain gradient descent from beside the split network, written out; the losses, a row for each ratio."""
    starts = []
    for ratio in ratios:
        model = copy.deepcopy(trained)
        split_neuron(model, "0", 0, ratio)
        starts.append(torch.stack([model[0].weight.detach()[:, 0], model[2].weight.detach()[0]]))
    torch.manual_seed(0)
    u, v = torch.stack(starts).repeat_interleave(runs, 0).add(1e-2 * torch.randn(len(ratios) * runs, 2, 2)).unbind(1)
    x, y = X[:, 0], Y[:, 0]
    for _ in range(steps):
        activations = torch.tanh(u[:, None] * x[:, None])
        residuals = (activations @ v[:, :, None])[:, :, 0] - y
        slope = v * ((residuals * x)[:, None] @ (1 - activations**2))[:, 0]
        u, v = u - 0.01 * slope, v - 0.01 * (residuals[:, None] @ activations)[:, 0]
    return 0.5 * residuals.square().sum(1).view(len(ratios), runs)


def test_gradient_descent_returns_or_leaves(trained: nn.Module) -> None:
    quarter, half, outside = gradient_descent(trained, [0.25, 0.5, 1.5], 4)
    assert torch.cat([quarter, half]).tolist() == pytest.approx([0.513460] * 8, abs=5e-6)
    # From the saddle there are two ways down; one of them ends on a plateau just below.
    assert outside.max() < 0.513 and outside.min() < 0.05


def test_inertia_of_the_split_network(trained: nn.Module) -> None:
    for ratio, expected in ((0.25, (0, 1, 3)), (0.5, (0, 1, 3)), (1.5, (1, 1, 2))):
        wide = copy.deepcopy(trained)
        split_neuron(wide, "0", 0, ratio)
        assert inertia(full_hessian(wide, X, Y), 1e-9) == expected


def test_path_out_never_goes_up(trained: nn.Module, tmp_path: Path) -> None:
    certificate = split_certificate(trained, HalfSquaredError(), (X, Y), "0", neuron=0, ratio=0.25)
    path = escape_path(trained, certificate, HalfSquaredError(), (X, Y), to_ratio=1.5)
    losses = path.losses
    assert losses[0] == pytest.approx(0.513460, abs=5e-7) and losses[-1] < 0.05
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))
    slide = [point for point in path.points if point.phase == "slide"]
    assert [slide[0].ratio, slide[-1].ratio] == [0.25, 1.5]
    assert max(point.loss for point in slide) - min(point.loss for point in slide) < 1e-12
    assert [phase for phase in dict.fromkeys(point.phase for point in path.points)] == ["slide", "step", "descend"]
    assert loss_of(path.model).item() == pytest.approx(losses[-1], rel=1e-12)
    for name in ("path.svg", "path.png"):
        path.plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_turned_neuron_finds_a_way_out_too(trained: nn.Module) -> None:
    """At ratio 1 the new neuron has no outgoing weights, so its incoming weights turn at constant loss."""
    certificate = split_certificate(trained, HalfSquaredError(), (X, Y), "0", neuron=0, ratio=0.25)
    path = escape_path(trained, certificate, HalfSquaredError(), (X, Y))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(path.losses))
    turned = [point for point in path.points if point.phase in ("slide", "turn")]
    assert {"slide", "turn"} == {point.phase for point in turned} and turned[-1].ratio == 1.0
    assert max(point.loss for point in turned) - min(point.loss for point in turned) < 1e-12
    assert path.escapes and path.relative_fall > 0.9
    assert path.fall == path.losses[0] - path.losses[-1]


def test_two_neurons_can_do_it_exactly() -> None:
    model = mlp((1, 2, 1), bias=False)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [4.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, -1.0]]))
    assert loss_of(model).item() < 1e-28
