"""Convolutions, groups, GPT-2's Conv1D, adapters, heads that are called twice: against the dense reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers.pytorch_utils import Conv1D

from hf_fam import measure_relative_flatness
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.layer.feature_layer import FeatureLayer

EVERYTHING = ("trace", "max_eigenvalue", "layerwise")


def images(count: int = 12) -> TensorDataset:
    torch.manual_seed(5)
    return TensorDataset(torch.randn(count, 4, 5, 5, dtype=torch.float64), torch.randint(0, 3, (count,)))


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def check(model: nn.Module, data: TensorDataset, name: str, probes: int = 400, **options: Any) -> None:
    (result,) = measure_relative_flatness(
        model, data, name, EVERYTHING, loss_fn=loss_fn, batch_size=5, probes=probes, **options
    )
    linear_map = FeatureLayer(model, name).linear_map
    loss = loss_fn(model.eval(), data.tensors)
    true = dense_flatness(loss, linear_map.stored(), matrix=linear_map.matrix, groups=linear_map.groups)
    assert abs(result.kappa - true.kappa.item()) <= 4.5 * result.standard_error_probes + 1e-10
    assert result.kappa_max == pytest.approx(true.kappa_max.item(), rel=1e-5)
    error = 4.5 * result.weight_norm**2 * result.hessian_trace_error
    assert abs(result.layerwise - true.layerwise.item()) <= error + 1e-10


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("pooled", [True, False], ids=["average", "max"])
def test_convolutions(groups: int, pooled: bool) -> None:
    torch.manual_seed(groups)
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.AdaptiveMaxPool2d(1)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=groups), nn.Tanh(), pool,
        nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    check(model, images(), "2", 150)


def test_a_convolution_as_head_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 2)).double()
    data = TensorDataset(images().tensors[0], torch.randint(0, 3, (12, 4, 4)))
    check(model, data, "2")
    (result,) = measure_relative_flatness(model, data, "head", loss_fn=loss_fn)
    assert result.estimator == "closed_form"


def test_normalised_convolution() -> None:
    """Channels are divided by their deviations; a rescaling of channels then changes nothing."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(4, 3)).double()
    data, options = images(), {"loss_fn": loss_fn, "normalize_features": True, "batch_size": 5}
    (before,) = measure_relative_flatness(model, data, "2", EVERYTHING, **options)
    with torch.no_grad():
        factors = torch.rand(5, dtype=torch.float64) * 9 + 0.5
        model[0].weight.mul_(factors.view(-1, 1, 1, 1))
        model[0].bias.mul_(factors)
        model[2].weight.div_(factors.view(1, -1, 1, 1))
    (after,) = measure_relative_flatness(model, data, "2", EVERYTHING, **options)
    for name in ("kappa", "kappa_max", "layerwise", "weight_norm"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-8), name


def test_conv1d_of_gpt2() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Conv1D(6, 5), nn.Tanh(), nn.Linear(6, 3)).double()
    check(model, TensorDataset(torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))), "2")


def test_adapters_are_merged() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = TensorDataset(torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,)))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["2"], r=2, init_lora_weights=False))
    (result,) = measure_relative_flatness(adapted, data, "2", EVERYTHING, loss_fn=loss_fn, batch_size=5)
    merged = adapted.merge_and_unload()
    (same,) = measure_relative_flatness(merged, data, "2", EVERYTHING, loss_fn=loss_fn, batch_size=5)
    for name in ("kappa", "kappa_max", "layerwise"):
        assert getattr(result, name) == pytest.approx(getattr(same, name), rel=1e-6), name


def test_a_layer_that_feeds_itself_is_refused() -> None:
    torch.manual_seed(4)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3)).double()
    data = TensorDataset(torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,)))
    with pytest.raises(ValueError, match="one call feeds the next"):
        measure_relative_flatness(model, data, "0", loss_fn=loss_fn)


def test_layers_that_feed_nothing_but_each_item_twice() -> None:
    """Sentence pairs: one layer, two calls, coupled by the loss."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.head = nn.Linear(4, 5), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.encode(x).tanh(), self.encode(x.flip(1)).tanh()], -1))

    torch.manual_seed(6)
    data = TensorDataset(torch.randn(10, 4, dtype=torch.float64), torch.randint(0, 3, (10,)))
    check(Pairs().double(), data, "encode", 600)
