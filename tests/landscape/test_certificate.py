"""The verdicts: what they rest on, and what is refused or left undecided."""

from __future__ import annotations

import collections
import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_fam.landscape import (
    HalfSquaredError,
    design_minimum,
    find_critical_point,
    split_certificate,
)
from hf_fam.landscape.objective import Objective
from support.splits import ACTIVATIONS, SplitCase, full_hessian, inertia, mlp, residuals_with
from support.tiny import random_states, tiny_llama

SECOND = {  # sigma'' written out
    nn.Tanh: lambda n: -2 * n.tanh() * (1 - n.tanh() ** 2),
    nn.Sigmoid: lambda n: n.sigmoid() * (1 - n.sigmoid()) * (1 - 2 * n.sigmoid()),
    nn.Softplus: lambda n: n.sigmoid() * (1 - n.sigmoid()),
    nn.SiLU: lambda n: n.sigmoid() * (1 - n.sigmoid()) * (2 + n * (1 - 2 * n.sigmoid())),
    nn.GELU: lambda n: torch.exp(-(n**2) / 2) * (2 - n**2) / math.sqrt(2 * math.pi),
}


def cross_entropy_case(seed: int, activation: Any = nn.Tanh) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    return mlp((3, 4, 3), activation), torch.randn(11, 3, dtype=torch.float64), torch.randint(0, 3, (11,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_b_and_d_by_loops_over_the_definition(activation: Any) -> None:
    model, x, y = cross_entropy_case(0, activation)
    result = split_certificate(model, nn.CrossEntropyLoss(), (x, y), "0", neuron=1)
    b, d = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    v = model[2].weight[:, 1].detach()
    for features, label in zip(x, y, strict=True):
        h = torch.cat([features, torch.ones(1)])
        n = model[0](features)[1].detach()
        output = model(features).detach()
        delta = (output.softmax(0) - nn.functional.one_hot(label, 3)) / len(x)
        step = 1e-6
        slope = (model[1](n + step) - model[1](n - step)) / (2 * step)
        b += (delta @ v) * SECOND[activation](n) * torch.outer(h, h)
        d += torch.outer(h, delta) * slope
    torch.testing.assert_close(result.B, b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.D, d, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(result.eigenvalues_b, torch.linalg.eigvalsh(b))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_streamed_over_batches_it_is_the_same(reduction: str) -> None:
    """Eleven items in batches of four: the last one is smaller."""
    model, x, y = cross_entropy_case(1)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    whole, streamed = (split_certificate(model, loss, data, "0", neuron=2) for data in ((x, y), loader))
    for name in ("B", "D"):
        torch.testing.assert_close(getattr(streamed, name), getattr(whole, name), rtol=1e-12, atol=1e-15)
    assert streamed.loss == pytest.approx(loss(model(x), y).item(), rel=1e-12)
    assert streamed.relative_gradient == pytest.approx(whole.relative_gradient, rel=1e-9)


def test_hessian_and_its_products() -> None:
    torch.manual_seed(0)
    model, x = mlp((2, 3, 2)), torch.randn(9, 2, dtype=torch.float64)
    y = torch.randn(9, 2, dtype=torch.float64)
    objective = Objective(HalfSquaredError(), [(x[:4], y[:4]), (x[4:], y[4:])])
    hessian = objective.hessian(model)
    torch.testing.assert_close(hessian, full_hessian(model, x, y), rtol=1e-10, atol=1e-10)
    vector = torch.randn(len(hessian), dtype=torch.float64)
    torch.testing.assert_close(objective.hessian_product(model, vector), hessian @ vector, rtol=1e-10, atol=1e-10)


def designed(d_vanishes: bool = True, outputs: int = 1, seed: int = 3) -> SplitCase:
    torch.manual_seed(seed)
    model = mlp((2, 3, outputs))
    x = torch.randn(40, 2, dtype=torch.float64)
    e = 1e-4 * residuals_with(model, x, 0, 1, d_vanishes, seed)
    return SplitCase(model, x, (model(x) - e).detach(), 0, 1, 0.5)


def test_dense_and_lanczos_agree() -> None:
    torch.manual_seed(0)
    model = mlp((2, 3, 1))
    design = design_minimum(model, torch.randn(60, 2), "0")
    data = (design.inputs, design.targets)
    dense = split_certificate(model, HalfSquaredError(), data, "0", 0)
    lanczos = split_certificate(model, HalfSquaredError(), data, "0", 0, dense_limit=0)
    assert dense.verdict.kind == lanczos.verdict.kind == "minimum"
    assert "full Hessian" in dense.verdict.reason and "Lanczos" in lanczos.verdict.reason
    assert lanczos.hessian.smallest == pytest.approx(dense.hessian.smallest, rel=1e-6)
    assert lanczos.hessian.largest == pytest.approx(dense.hessian.largest, rel=1e-9)


def test_indefinite_b_is_a_saddle_but_at_0_and_1() -> None:
    case = designed()
    result = split_certificate(case.model, HalfSquaredError(), (case.x, case.y), "0", 1)
    assert result.eigenvalues_b[0] < 0 < result.eigenvalues_b[-1]
    assert {result.judge(ratio).kind for ratio in (-1.0, 0.3, 0.5, 2.0)} == {"saddle"}
    assert {result.judge(ratio).kind for ratio in (0.0, 1.0)} == {"undecided"}
    for ratio in (-1.0, 0.5):
        case.ratio = ratio
        assert inertia(full_hessian(case.wide, case.x, case.y))[0] > 0


def test_d_makes_a_saddle_of_every_split() -> None:
    case = designed(d_vanishes=False, outputs=2)
    result = split_certificate(case.model, HalfSquaredError(), (case.x, case.y), "0", 1)
    assert {result.judge(ratio).kind for ratio in (-1.0, 0.0, 0.5, 1.0, 2.0)} == {"saddle"}
    assert "D is not zero" in result.verdict.reason and result.verdict.margin > 1e6


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.5, 1.0, 1.5])
def test_verdict_matches_the_measured_inertia(ratio: float) -> None:
    """A minimum of the narrow network, split: the wide network's Hessian has negative eigenvalues or it has not."""
    torch.manual_seed(5)
    model = mlp((2, 3, 2))
    design = design_minimum(model, torch.randn(60, 2), "0", neuron=2)
    case = SplitCase(model, design.inputs, design.targets, 0, 2, ratio)
    negative = inertia(full_hessian(case.wide, case.x, case.y))[0]
    kind = design.certificate.judge(ratio).kind
    assert kind == {-0.5: "saddle", 0.0: "undecided", 0.5: "minimum", 1.0: "undecided", 1.5: "saddle"}[ratio]
    assert (negative > 0) == (kind == "saddle")


def test_a_saddle_before_the_split_stays_one() -> None:
    """B > 0, D = 0, but H has a negative eigenvalue: the scale of the residuals is beyond its bound."""
    torch.manual_seed(5)
    model = mlp((2, 3, 2))
    design = design_minimum(model, torch.randn(60, 2), "0", neuron=2)
    targets = design.targets - 3 * (model(design.inputs).detach() - design.targets)
    result = split_certificate(model, HalfSquaredError(), (design.inputs, targets), "0", 2)
    assert result.eigenvalues_b[0] > 0 and result.verdict.kind == "saddle"
    assert "saddle before the split" in result.verdict.reason


def test_away_from_critical_points_nothing_is_decided() -> None:
    model, x, y = cross_entropy_case(0)
    result = split_certificate(model, nn.CrossEntropyLoss(), (x, y), "0", 0)
    assert result.verdict.kind == "undecided" and result.verdict.margin == 1e-5 / result.relative_gradient < 1
    assert "find_critical_point" in result.verdict.reason


def test_separable_data_have_no_critical_point() -> None:
    """The gradient becomes as small as you like, but so does the loss: its relative size does not."""
    torch.manual_seed(0)
    x = torch.randn(12, 2, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    with torch.no_grad():
        model = mlp((2, 2, 2))
        model[0].weight.copy_(torch.tensor([[30.0, 0.0], [0.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[-30.0, 0.0], [30.0, 0.0]]))
    result = split_certificate(model, nn.CrossEntropyLoss(), (x, y), "0", 0)
    assert result.curvature.gradient.norm() < 1e-9 and result.relative_gradient > 1
    assert result.verdict.kind == "undecided"


def test_piecewise_linear_activation() -> None:
    """B = 0 decides nothing; D != 0 still makes a saddle."""
    torch.manual_seed(0)
    x = torch.randn(60, 2, dtype=torch.float64)
    for outputs, d_vanishes, kind in ((1, True, "undecided"), (2, False, "saddle")):
        model = mlp((2, 3, outputs), nn.ReLU)
        e = residuals_with(model, x, 0, 1, d_vanishes, 0)
        result = split_certificate(model, HalfSquaredError(), (x, (model(x) - e).detach()), "0", 1)
        assert result.B.abs().max() == 0 and result.verdict.kind == kind
    model = mlp((2, 3, 1), nn.ReLU)
    model[1].inplace = True
    e = residuals_with(mlp_like(model), x, 0, 1, True, 0)
    in_place = split_certificate(model, HalfSquaredError(), (x, (model(x) - e).detach()), "0", 1)
    plain = split_certificate(mlp_like(model), HalfSquaredError(), (x, (model(x) - e).detach()), "0", 1)
    torch.testing.assert_close(in_place.D, plain.D)
    assert "piecewise linear" in in_place.verdict.reason


def mlp_like(model: nn.Sequential) -> nn.Sequential:
    plain = copy.deepcopy(model)
    plain[1].inplace = False
    return plain


def test_float32_model_is_decided_in_float64_and_left_alone() -> None:
    model, x, y = cross_entropy_case(0)
    small = copy.deepcopy(model).float().train()
    weights, states = copy.deepcopy(small.state_dict()), random_states()
    result = split_certificate(small, nn.CrossEntropyLoss(), (x.float(), y), "0", 0)
    assert result.B.dtype == torch.float64
    exact = split_certificate(copy.deepcopy(small).double(), nn.CrossEntropyLoss(), (x.float().double(), y), "0", 0)
    torch.testing.assert_close(result.B, exact.B, rtol=1e-14, atol=0)
    assert all(torch.equal(weight, weights[name]) for name, weight in small.state_dict().items())
    assert small.training and all(p.grad is None for p in small.parameters()) and random_states() == states
    with torch.no_grad():
        torch.testing.assert_close(split_certificate(small, nn.CrossEntropyLoss(), (x, y), "0", 0).D.shape, (4, 3))


class Mixing(nn.Module):
    """Something else than an elementwise activation between two layers of fitting shapes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate, self.kind = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(3, 4), kind

    def forward(self, x: Tensor) -> Tensor:
        n = self.fc1(x)
        if self.kind == "softmax":
            n = n.softmax(-1)
        if self.kind == "items":
            n = n.tanh() - n.tanh().mean(0)
        if self.kind == "nothing":
            n = torch.zeros_like(n)
        if self.kind == "pooled":
            n = n.tanh().mean(0, keepdim=True).expand(len(x), 4)
        if self.kind == "fewer":
            n = n[:2].tanh()
        if self.kind == "gate":
            n = n.sigmoid() * self.gate(x)
        return self.fc2(n).sum() * torch.ones(len(x), 1, dtype=x.dtype)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("softmax", "only an elementwise activation"),
        ("items", "only an elementwise activation"),
        ("pooled", "only an elementwise activation"),
        ("nothing", "does not read"),
        ("gate", "depends on 'gate.weight', not only on 'fc1'. Choose layers without a gate"),
        ("fewer", "only an elementwise activation"),
    ],
)
def test_what_is_not_elementwise_is_refused(kind: str, message: str) -> None:
    torch.manual_seed(0)
    data = (torch.randn(5, 3), torch.randn(5, 1))
    with pytest.raises(ValueError, match=message):
        split_certificate(Mixing(kind), HalfSquaredError(), data, "fc1", 0, next_layer="fc2")


def test_gated_and_frozen_are_refused() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, 6, 7]])}
    for given in ({}, {"next_layer": "model.layers.0.mlp.down_proj"}):
        with pytest.raises(ValueError, match="gated MLP, where a neuron is a product"):
            split_certificate(tiny_llama(), None, [batch], "model.layers.0.mlp.gate_proj", 0, **given)
    model, x, y = cross_entropy_case(0)
    model[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="weight of '2' is frozen"):
        split_certificate(model, nn.CrossEntropyLoss(), (x, y), "0", 0)


def test_frozen_parameters_elsewhere_are_constants() -> None:
    torch.manual_seed(0)
    model, x = mlp((2, 3, 3, 1)), torch.randn(20, 2, dtype=torch.float64)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    result = split_certificate(model, HalfSquaredError(), (x, torch.zeros(20, 1)), "2", 0)
    assert len(result.curvature.gradient) == 3 * 3 + 3 + 3 + 1


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (iter([]), ValueError, "only once"),
        ([], ValueError, "no batches"),
        ([torch.zeros(3)], TypeError, "pairs"),
        ([(1.0, 2.0)], TypeError, "no tensor"),
        ([{"input_ids": torch.zeros(3, 3)}], ValueError, "loss must be a scalar"),
    ],
)
def test_bad_data(data: Any, error: type[Exception], message: str) -> None:
    class Model(nn.Sequential):
        def forward(self, x: Any = None, **batch: Tensor) -> Tensor:
            return super().forward(batch["input_ids"] if x is None else x)

    model = Model(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(error, match=message):
        split_certificate(model, lambda outputs, batch: outputs, data, "0", 0, next_layer="2")


def test_other_shapes_of_data() -> None:
    """A batch of one, batches that are lists or named tuples, inputs that are dicts."""
    model, x, y = cross_entropy_case(0)
    one = split_certificate(model, nn.CrossEntropyLoss(), (x[:1], y[:1]), "0", 0)
    pair = collections.namedtuple("Pair", "inputs targets")
    for data in ([[x[:1], y[:1]]], [pair(x[:1], y[:1])], [({"input": x[:1]}, y[:1])]):
        assert torch.equal(split_certificate(model, nn.CrossEntropyLoss(), data, "0", 0).B, one.B)


def test_bad_reduction_and_ratio() -> None:
    model, x, y = cross_entropy_case(0)
    with pytest.raises(ValueError, match="reduction='none'"):
        split_certificate(model, nn.CrossEntropyLoss(reduction="none"), (x, y), "0", 0)
    with pytest.raises(ValueError, match="ratio=inf"):
        split_certificate(model, nn.CrossEntropyLoss(), (x, y), "0", 0, ratio=math.inf)
    with pytest.raises(ValueError, match="the loss has no gradient"):
        split_certificate(model, lambda outputs, targets: outputs.detach().sum(), (x, y), "0", 0)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        find_critical_point(model, nn.CrossEntropyLoss(), (x, y))
    with pytest.raises(ValueError, match="outputs have shape"):
        HalfSquaredError()(torch.zeros(3, 1), torch.zeros(3))


def test_critical_point_is_found_to_float64() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 2, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1])
    model = find_critical_point(mlp((2, 2, 1)).float(), HalfSquaredError(), (x, y)).model
    result = split_certificate(model, HalfSquaredError(), (x, y), "0", 0)
    assert result.relative_gradient < 1e-10
    assert full_hessian(model, x, y).shape == (9, 9)


def test_a_point_not_quite_critical_is_still_decided() -> None:
    """With one unit above, D = gradient / v is small and not zero; a Newton step away nothing changes."""
    torch.manual_seed(5)
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    y = 2 * x.tanh() - (4 * x).tanh()
    model = find_critical_point(mlp((1, 1, 1), bias=False), HalfSquaredError(), (x, y)).model
    with torch.no_grad():
        model[0].weight *= 1 + 1e-8
    result = split_certificate(model, HalfSquaredError(), (x, y), "0", 0)
    assert 1e-9 < result.relative_gradient < 1e-5 and result.D.abs().item() > 1e-8
    assert result.verdict.kind == "minimum" and 1e-10 < result.hessian.newton_distance < 1e-7
    with torch.no_grad():
        model[0].weight *= 1 + 1e-3
    far = split_certificate(model, HalfSquaredError(), (x, y), "0", 0)
    assert far.verdict.kind == "undecided" and "not a critical point" in far.verdict.reason


def test_a_fit_that_is_nearly_perfect_is_called_so() -> None:
    """The gradient is relative to the loss, which goes to zero faster."""
    torch.manual_seed(5)
    x = torch.randn(40, 2).double()
    y = torch.sign(x[:, :1] + 0.5 * x[:, 1:] + 0.6 * torch.randn(40, 1).double())
    layers = [nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)]
    found = find_critical_point(nn.Sequential(*layers).double(), HalfSquaredError(), (x, y), steps=300)
    assert found.loss < 1e-5 and not found.converged
    assert f"the loss {found.loss:.1e} is nearly a perfect fit" in found.reason


@pytest.mark.parametrize("seed", range(6))
def test_three_layers_converge_with_weight_decay_or_say_that_they_did_not(seed: int) -> None:
    """Without weight decay, their weights are on the way to infinity; the search must not pass that over."""
    torch.manual_seed(seed)
    model, x = mlp((2, 3, 3, 1)), torch.randn(60, 2).double()
    y = torch.sin(x[:, :1]) + 0.3 * x[:, 1:] ** 2 + 0.3 * torch.randn(60, 1).double()
    found = find_critical_point(model, HalfSquaredError(), (x, y), weight_decay=0.01)
    assert found.converged and found.relative_gradient < 1e-9 and "Newton step" in found.reason
    parameters = list(found.model.parameters())
    loss = HalfSquaredError()(found.model(x), y) + 0.005 * sum(p.square().sum() for p in parameters)
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    assert max(g.abs().max() for g in torch.autograd.grad(loss, parameters)) < 1e-9
    lost = find_critical_point(model, HalfSquaredError(), (x, y), steps=20)
    assert lost.converged == (lost.relative_gradient < 1e-5)
    if not lost.converged:
        assert "raise steps, start elsewhere or add a weight decay" in lost.reason
