"""Paths out of designed minima, and out of the reverse ones; what is refused."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

from hf_fam.landscape import (
    HalfSquaredError,
    design_minimum,
    escape_path,
    find_critical_point,
    split_certificate,
    split_neuron,
)
from hf_fam.landscape.new_neuron import candidates
from support.splits import mlp, residuals_with
from support.tiny import classified, tiny_bert


def assert_never_up(losses: list[float]) -> None:
    assert all(after <= before + 1e-12 * max(1.0, abs(before)) for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("sizes", [(2, 3, 1), (2, 3, 2), (2, 2, 2, 1)])
def test_designed_minimum_is_left(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    model = mlp(sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    design = design_minimum(model, torch.randn(120, 2), "0", neuron=1, ratio=0.3, depth=0.2)
    assert design.certificate.verdict.kind == "minimum"
    data = (design.inputs, design.targets)
    torch.testing.assert_close(design.targets, (model(design.inputs) - design.scale * design.residuals).detach())
    weights = copy.deepcopy(model.state_dict())
    path = escape_path(model, design.certificate, HalfSquaredError(), data, steps=60)
    assert_never_up(path.losses)
    assert path.relative_fall > 0.2 and path.escapes
    assert path.points[0].ratio == 0.3 and path.points[-1].ratio == 1.0
    outside = escape_path(model, design.certificate, HalfSquaredError(), data, to_ratio=1.5, steps=60)
    assert_never_up(outside.losses)
    assert outside.points[-1].ratio == 1.5 and outside.losses[-1] < outside.losses[0]
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert path.model[0].out_features == sizes[1] + 1


def test_descent_returns_to_a_designed_minimum() -> None:
    """Gradient descent from beside it ends at the same loss, which a path leads below: it is local, and not global."""
    torch.manual_seed(1)
    model = mlp((2, 2, 1))
    design = design_minimum(model, torch.randn(80, 2), "0")
    start = design.certificate.loss
    for seed in range(3):
        wide = copy.deepcopy(model)
        split_neuron(wide, "0", 0, 0.5)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in wide.parameters():
                parameter += 1e-5 * torch.randn_like(parameter)
        end = find_critical_point(wide, HalfSquaredError(), (design.inputs, design.targets)).model
        assert HalfSquaredError()(end(design.inputs), design.targets).item() == pytest.approx(start, rel=1e-6)


def test_negative_b_is_left_inside() -> None:
    """With -B > 0 the minima lie outside [0, 1], and the way out leads to 1/2."""
    torch.manual_seed(1)
    model = mlp((2, 2, 1))
    design = design_minimum(model, torch.randn(80, 2), "0", ratio=0.5)
    y = design.targets + 2 * design.scale * design.residuals
    result = split_certificate(model, HalfSquaredError(), (design.inputs, y), "0", 0, ratio=2.0)
    assert result.eigenvalues_b[-1] < 0 and result.judge(0.5).kind == "saddle"
    assert result.verdict.kind == ("minimum" if result.hessian.smallest > 0 else "saddle")
    path = escape_path(model, result, HalfSquaredError(), (design.inputs, y), to_ratio=0.5, steps=20)
    assert path.points[-1].ratio == 0.5 and path.losses[-1] < path.losses[0]
    assert_never_up(path.losses)


def test_saddle_by_d_is_left_where_it_is() -> None:
    torch.manual_seed(2)
    model, x = mlp((2, 3, 2)), torch.randn(40, 2, dtype=torch.float64)
    y = (model(x) - residuals_with(model, x, 0, 1, False, 0)).detach()
    result = split_certificate(model, HalfSquaredError(), (x, y), "0", 1)
    path = escape_path(model, result, HalfSquaredError(), (x, y), to_ratio=0.5, steps=20)
    assert {point.ratio for point in path.points} == {0.5} and path.losses[-1] < path.losses[0]


def test_transformer_away_from_critical_points() -> None:
    """Nothing is certified there, and still the path goes down; dropout is off, the configuration left alone."""
    model, rows = tiny_bert(), classified(6)
    batch = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = split_certificate(model, None, [batch], "bert.encoder.layer.1.intermediate.dense", 0)
        path = escape_path(model, result, None, [batch], steps=2)
    assert_never_up(path.losses)
    assert path.losses[-1] < path.losses[0] and model.config.intermediate_size == 16


def test_slides_of_any_length() -> None:
    torch.manual_seed(1)
    model = mlp((2, 2, 1))
    design = design_minimum(model, torch.randn(80, 2), "0")
    given = (model, design.certificate, HalfSquaredError(), (design.inputs, design.targets))
    for points in (1, 0, -3, 2.5):
        with pytest.raises(ValueError, match=f"slide_points={points}: give a whole number from 2 to"):
            escape_path(*given, slide_points=points)
    with pytest.raises(ValueError, match="to_ratio=inf: give a finite number"):
        escape_path(*given, to_ratio=float("inf"))
    path = escape_path(*given, to_ratio=1e6, slide_points=9, steps=2)  # shares that large cancel with rounding
    assert path.points[-1].ratio == 1e6


def test_other_data_are_refused() -> None:
    torch.manual_seed(1)
    model = mlp((2, 2, 1))
    design = design_minimum(model, torch.randn(80, 2), "0")
    with pytest.raises(ValueError, match="the certificate was made at"):
        escape_path(model, design.certificate, HalfSquaredError(), (design.inputs, design.targets + 1))


def test_no_way_out_is_said() -> None:
    model, x = mlp((2, 3, 1), nn.ReLU), torch.randn(60, 2, dtype=torch.float64)
    y = (model(x) - residuals_with(model, x, 0, 1, True, 0)).detach()
    result = split_certificate(model, HalfSquaredError(), (x, y), "0", 1)
    with pytest.raises(ValueError, match="no direction of negative curvature.*piecewise linear"):
        escape_path(model, result, HalfSquaredError(), (x, y), to_ratio=1.5)
    assert escape_path(model, result, HalfSquaredError(), (x, y), steps=5).escapes  # a turned neuron needs no curvature


@pytest.mark.parametrize(("sizes", "activation"), [((4, 5, 2), nn.Sigmoid), ((2, 3, 2), nn.Softplus)])
def test_a_minimum_is_as_deep_as_asked_for(sizes: tuple[int, ...], activation: type[nn.Module]) -> None:
    """The neuron that removes the depth is fitted by hand; least-norm residuals make shallow minima."""
    falls = []
    for depth in (0.0, 0.4):
        torch.manual_seed(1)
        model = mlp(sizes, activation)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        design = design_minimum(model, torch.randn(120, sizes[0]), "0", depth=depth)
        assert design.certificate.verdict.kind == "minimum" and design.depth >= depth
        residuals = model(design.inputs).detach() - design.targets
        h = torch.cat([design.inputs, torch.ones(120, 1)], dim=1).double()
        values = model[1](h @ candidates(h, True).T)
        fitted = (values.T @ residuals).norm(dim=1) / values.norm(dim=0)
        falls.append(float((fitted / residuals.norm()).square().max()))
        path = escape_path(model, design.certificate, HalfSquaredError(), (design.inputs, design.targets), steps=60)
        assert_never_up(path.losses)
        assert path.relative_fall >= depth
    assert falls[0] < 0.2 and falls[1] >= 0.4


def test_a_fall_within_rounding_is_no_escape() -> None:
    """A minimum that a step along the curvature can hardly leave: the path says how little it falls."""
    torch.manual_seed(0)
    model = mlp((2, 3, 2), nn.Softplus)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    design = design_minimum(model, torch.randn(120, 2), "0", depth=0.0)
    data = (design.inputs, design.targets)
    path = escape_path(model, design.certificate, HalfSquaredError(), data, to_ratio=1.5, steps=0)
    assert 0 < path.relative_fall < 1e-6 and not path.escapes


def test_weight_decay_makes_the_minimum_strict() -> None:
    """The split at 1/2 is critical for the decayed objective; there is no way out but over a rise."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    y = 2 * x.tanh() - (4 * x).tanh()
    alpha, loss = 0.01, HalfSquaredError()
    found = find_critical_point(mlp((1, 1, 1), bias=False), loss, (x, y), weight_decay=alpha, split=("0", 0))
    certificate = split_certificate(found.model, loss, (x, y), "0", 0, weight_decay=alpha)
    wide = copy.deepcopy(found.model)
    split_neuron(wide, "0", 0, 0.5)

    def objective(u: Tensor, v: Tensor) -> Tensor:
        residuals = (torch.tanh(x * u) * v).sum(1, keepdim=True) - y
        return 0.5 * residuals.square().sum() + alpha / 2 * (u.square().sum() + v.square().sum())

    weights = (wide[0].weight.detach()[:, 0], wide[2].weight.detach()[0])
    assert certificate.loss == pytest.approx(objective(*weights).item(), rel=1e-12)
    gradient = torch.cat(torch.autograd.functional.jacobian(objective, weights))
    assert gradient.norm() < 1e-10
    hessian = torch.cat([torch.cat(row, 1) for row in torch.autograd.functional.hessian(objective, weights)])
    negative = int((torch.linalg.eigvalsh(hessian) < 0).sum())
    assert (certificate.verdict.kind == "minimum") == (negative == 0)
    assert certificate.verdict.kind in ("minimum", "saddle") and certificate.judge(0.3).kind == "undecided"
    # The Hessian of the split network is congruent to that before the split and the block, entry by entry.
    change = torch.tensor([[1, 0, 0.5, 0], [1, 0, -0.5, 0], [0, 0.5, 0, 1], [0, 0.5, 0, -1]]).double()
    before = torch.func.hessian(lambda t: objective(t[:1].repeat(2), t[1:].repeat(2) / 2))(
        torch.stack([found.model[0].weight[0, 0], found.model[2].weight[0, 0]]).detach()
    )
    expected = torch.block_diag(before, certificate.curvature.block(0.5))
    torch.testing.assert_close(change.T @ hessian @ change, expected, rtol=1e-9, atol=1e-9)
    if certificate.verdict.kind == "minimum":
        with pytest.raises(ValueError, match="with weight decay, such a minimum has no way out"):
            escape_path(found.model, certificate, loss, (x, y))
    with pytest.raises(ValueError, match="to_ratio=1.5: with weight decay"):
        escape_path(found.model, certificate, loss, (x, y), to_ratio=1.5)


def test_a_loss_that_is_no_function_of_the_parameters_is_noticed() -> None:
    torch.manual_seed(1)
    model = mlp((2, 2, 1))
    design = design_minimum(model, torch.randn(80, 2), "0")
    calls = []

    def drifting(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return HalfSquaredError()(outputs, targets) + 1e-6 * (len(calls) > 2)

    with pytest.raises(RuntimeError, match=r"rose from .* in phase 'slide'.*without augmentation"):
        escape_path(model, design.certificate, drifting, (design.inputs, design.targets))


def test_refusals_of_design() -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="ratio=1.5"):
        design_minimum(mlp((2, 2, 1)), torch.randn(80, 2), "0", ratio=1.5)
    with pytest.raises(ValueError, match="depth=1.0"):
        design_minimum(mlp((2, 2, 1)), torch.randn(80, 2), "0", depth=1.0)
    with pytest.raises(ValueError, match=r"depth=0.99: .* can remove at most 0\.\d+ of the loss"):
        design_minimum(mlp((2, 2, 1)), torch.randn(80, 2), "0", depth=0.99)
    with pytest.raises(ValueError, match="Give more data"):
        design_minimum(mlp((2, 2, 1)), torch.randn(10, 2), "0")
    with pytest.raises(ValueError, match="singular"):
        twice = mlp((2, 2, 1))
        split_neuron(twice, "0", 0)
        design_minimum(twice, torch.randn(80, 2), "0", neuron=1)
    with pytest.raises(ValueError, match="piecewise linear"):
        design_minimum(mlp((2, 2, 1), nn.ReLU), torch.randn(80, 2), "0")
    with pytest.raises(ValueError, match="no certified minimum with scale=1e"):
        design_minimum(mlp((2, 2, 1)), torch.randn(80, 2), "0", scale=1e3)
