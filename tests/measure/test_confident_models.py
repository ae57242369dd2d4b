"""Measurements of a model that is sure of every item, in float32: as in float64, or with a warning."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hf_fam import measure_relative_flatness

C = 3
MEASURES = ("trace", "max_eigenvalue", "layerwise")


def sure(margin: float) -> tuple[nn.Module, TensorDataset]:
    """A model and data whose labels lead by about a margin."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C))
    x, y = torch.randn(40, 4), torch.arange(40) % C
    with torch.no_grad():
        model[2].weight.mul_(0.05)
        model[2].bias.copy_(torch.tensor([margin, 0.0, 0.0]))
    return model, TensorDataset(x, torch.zeros_like(y))


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def sigmoids(model: nn.Module, batch: Any) -> Tensor:
    z = model(batch[0])
    return F.binary_cross_entropy_with_logits(z, F.one_hot(batch[1], C).to(z.dtype))


def focal(model: nn.Module, batch: Any) -> Tensor:
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("loss_fn", [smoothed, sigmoids])
@pytest.mark.parametrize("margin", [5.0, 17.0, 25.0])
@pytest.mark.filterwarnings("error:kappa of")
def test_same_as_in_float64(margin: float, loss_fn: Any, estimator: str) -> None:
    model, data = sure(margin)
    wide = TensorDataset(data.tensors[0].double(), data.tensors[1])
    tables = [
        measure_relative_flatness(m, d, ["0", "2"], MEASURES, estimator=estimator, probes=6, loss_fn=loss_fn)
        for m, d in ((model, data), (copy.deepcopy(model).double(), wide))
    ]
    for found, expected in zip(*tables, strict=True):
        for name in ("kappa", "kappa_max", "layerwise"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=0.0), (
                found.layer,
                name,
            )


@pytest.mark.parametrize("classes", [5, 5000])
@pytest.mark.parametrize("margin", [5.0, 17.0, 25.0])
def test_heads_of_any_size(margin: float, classes: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)), torch.randn(20, 4)
    with torch.no_grad():
        model[2].weight.mul_(0.3)
        model[2].bias.zero_()[0] = margin
    y = torch.zeros(20, dtype=torch.long)
    y[0] = 1  # one label is wrong

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    found, expected = (
        measure_relative_flatness(m, data, "2", ("trace", "layerwise"), loss_fn=loss_fn)["2"]
        for m, data in ((model, TensorDataset(x, y)), (copy.deepcopy(model).double(), TensorDataset(x.double(), y)))
    )
    assert found.kappa == pytest.approx(expected.kappa, rel=1e-4, abs=0.0)
    assert found.layerwise == pytest.approx(expected.layerwise, rel=1e-4, abs=0.0)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_a_loss_that_rounds_warns(layer: str) -> None:
    with pytest.warns(UserWarning, match=f"kappa of '{layer}' may be off"):
        measure_relative_flatness(*sure(17.0), layer, loss_fn=focal)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_relative_flatness(*sure(5.0), layer, loss_fn=focal)
