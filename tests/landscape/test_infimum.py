"""From any point, a network with an extremely wide layer has a path to the infimum on which the loss never rises."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_fam.landscape import (
    HalfSquaredError,
    find_critical_point,
    path_to_infimum,
    split_certificate,
    widen,
)
from hf_fam.landscape.chain import inverse
from support.splits import mlp


def data(items: int, inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(items, inputs, generator=generator), torch.randn(items, outputs, generator=generator)
    return x.double(), y.double()


def damaged(model: nn.Sequential, items: int) -> nn.Sequential:
    """The same neurons again and again in the wide layer, and rows that repeat in the last."""
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear) and layer.out_features >= items:
                layer.weight[5:], layer.bias[5:] = layer.weight[:1], layer.bias[:1]
        model[-1].weight[:] = model[-1].weight[:1].clone()
    return model


CASES = [
    ((2, 12, 4, 1), nn.Tanh, 12),
    ((2, 3, 30, 5, 4, 2), nn.Sigmoid, 20),
    ((2, 25, 1), nn.ReLU, 20),
    ((2, 30, 8, 8, 2), nn.Softplus, 20),
    ((1, 41, 4, 2, 2), nn.LeakyReLU, 30),
]


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize(("sizes", "activation", "items"), CASES)
def test_never_rises_and_reaches_the_infimum(
    sizes: tuple[int, ...], activation: Any, items: int, is_damaged: bool
) -> None:
    torch.manual_seed(0)
    model = mlp(sizes, activation)
    if is_damaged:
        model = damaged(model, items)
    x, y = data(items, sizes[0], sizes[-1], 1)
    before = copy.deepcopy(model.state_dict())
    path = path_to_infimum(model, HalfSquaredError(), (x, y), points=9)
    assert path.losses[0] == pytest.approx(HalfSquaredError()(model(x), y).item(), rel=1e-12)
    assert max(after - earlier for earlier, after in itertools.pairwise(path.losses)) <= 1e-9 * path.losses[0]
    assert path.losses[-1] < 1e-9 * path.losses[0] and path.infimum < 1e-9
    assert HalfSquaredError()(path.model(x), y).item() == path.losses[-1]
    constant = [point.loss for point in path.points if point.phase != "line"]
    assert max(constant) - min(constant) < 1e-9 * path.losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.shape for p in path.model.parameters()] == [p.shape for p in model.parameters()]
    if is_damaged:
        assert not path.conditions[0].holds and path.conditions[0].rank <= 5
        assert {point.phase for point in path.points} >= {"transfer", "turn", "line"}
        if sizes[-1] > 1 and len(sizes) > 3:
            assert not path.conditions[-1].holds and path.conditions[-1].rank == 1


def test_nearly_dependent_features() -> None:
    """Smooth functions of one input: half of the features are combinations of others but for ten digits."""
    x = torch.linspace(-3, 3, 41)[:, None]
    torch.manual_seed(0)
    path = path_to_infimum(mlp((1, 41, 4, 1)), HalfSquaredError(), (x, 2 * x.tanh() - (4 * x).tanh()), points=9)
    assert path.conditions[0].rank < 41 and path.losses[-1] < 1e-12 * path.losses[0]
    assert all(after <= before + 1e-10 for before, after in itertools.pairwise(path.losses))


def test_a_loss_whose_infimum_is_not_attained() -> None:
    torch.manual_seed(0)
    x = data(20, 3, 1, 0)[0]
    y = torch.randint(0, 3, (20,))
    path = path_to_infimum(mlp((3, 40, 6, 3)), nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(path.losses))
    assert path.losses[-1] < 1e-9


def test_out_of_a_certified_local_minimum(tmp_path: Path) -> None:
    """One neuron at a local minimum, split until the layer is extremely wide; all of its copies share one function."""
    x = torch.linspace(-3, 3, 21, dtype=torch.float64)[:, None]
    y = 2 * x.tanh() - (4 * x).tanh()
    torch.manual_seed(0)
    found = find_critical_point(mlp((1, 1, 1), bias=False), HalfSquaredError(), (x, y))
    certificate = split_certificate(found.model, HalfSquaredError(), (x, y), "0", 0, ratio=0.5)
    assert certificate.verdict.kind == "minimum"
    model = mlp((1, 1, 1))  # with biases of zero, so that the inputs can be told apart by sign
    with torch.no_grad():
        for layer, trained in ((model[0], found.model[0]), (model[2], found.model[2])):
            layer.weight.copy_(trained.weight)
            layer.bias.zero_()
    widen(model, "0", by=20, ratio=0.5)
    path = path_to_infimum(model, HalfSquaredError(), (x, y))
    assert path.losses[0] == pytest.approx(found.loss, rel=1e-9) and path.losses[-1] < 1e-9
    assert path.conditions[0].rank == 1 and path.conditions[0].needed == 21
    path.plot(tmp_path / "path.png")
    assert (tmp_path / "path.png").stat().st_size > 1000


def test_inverse_of_activations() -> None:
    z = torch.linspace(-12, 12, 97, dtype=torch.float64)
    for activation in (nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.LeakyReLU(), nn.ELU()):
        values = activation(z)
        torch.testing.assert_close(activation(inverse(activation, values)), values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("model", "given", "error", "message"),
    [
        (mlp((2, 9, 1)), {}, ValueError, "no layer is wide enough: '0' has 9 units for 10 items"),
        (mlp((2, 12, 3, 4, 1)), {}, ValueError, "'4' cannot have full row rank: it makes 4 values from 3"),
        (mlp((2, 12, 3, 1), nn.GELU), {}, ValueError, "activation behind layer '2' is not strictly increasing"),
        (mlp((2, 12, 3, 1), nn.Sigmoid, bias=False), {}, ValueError, "layer '4' has no bias"),
        (mlp((2, 12, 3, 1)), {"layer": "2"}, ValueError, "no layer is wide enough"),
        (mlp((2, 12, 3, 1)), {"layer": "4"}, ValueError, "layer='4' is no hidden layer: give one of '0', '2'"),
        (mlp((2, 12, 3, 1)), {"points": 1}, ValueError, "points=1"),
        (nn.Sequential(nn.Linear(2, 12), nn.Softmax(-1), nn.Linear(12, 1)), {}, TypeError, "'1' is a Softmax"),
        (nn.Sequential(nn.Linear(2, 12), nn.Tanh()), {}, TypeError, "ends with an activation"),
        (nn.Linear(2, 1), {}, TypeError, "the model is a Linear"),
    ],
)  # fmt: skip
def test_refusals_name_the_layer(model: nn.Module, given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        path_to_infimum(model, HalfSquaredError(), data(10, 2, 1, 0), **given)


def test_items_that_cannot_be_told_apart_are_refused() -> None:
    x, y = data(10, 2, 1, 0)
    x[7] = x[3]
    with pytest.raises(ValueError, match=r"rank of the number of items: items 3 and 7 have the same inputs"):
        path_to_infimum(mlp((2, 12, 1)), HalfSquaredError(), (x, y))
    model = mlp((2, 3, 12, 1))
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(ValueError, match="features of layer '2'.*have the same inputs"):
        path_to_infimum(model, HalfSquaredError(), data(10, 2, 1, 0))


def test_a_loss_that_is_not_convex_is_noticed() -> None:
    """There is a narrow ridge half way between the outputs at the start and the targets."""
    torch.manual_seed(0)
    model, (x, _) = mlp((2, 12, 1)), data(10, 2, 1, 0)

    def ridge(outputs: Tensor, targets: Tensor) -> Tensor:
        distance = outputs - targets
        return distance.square().sum() + 5 * torch.exp(-200 * (distance + 1.5).square()).sum()

    with pytest.raises(RuntimeError, match="rose from .* not convex in the outputs"):
        path_to_infimum(model, ridge, (x, model(x).detach() + 3))
