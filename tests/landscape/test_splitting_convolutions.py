"""Channels of convolutions are neurons too: split, merged and widened with the function kept, in both modes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_fam.landscape import merge_duplicates, split_neuron, widen


def images(channels: int = 2) -> Tensor:
    return torch.randn(5, channels, 8, 8, dtype=torch.float64)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.GELU(),
        nn.Flatten(), nn.Linear(36, 5),
    )  # fmt: skip


def normalized() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 3, 5), nn.SiLU(), nn.Dropout1d(0.0), nn.Conv1d(3, 2, 3, padding="same")
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("build", "layer"), [(plain, "0"), (plain, "2"), (normalized, "0"), (normalized, "4"), (one_dimensional, "1")]
)
@pytest.mark.parametrize("ratio", [0.3, 1.5])
def test_function_is_kept_and_merging_undoes(build: object, layer: str, train: bool, ratio: float) -> None:
    torch.manual_seed(0)
    model, x = build().double(), images()
    model.train()
    model(3 * x + 1)  # statistics that are not 0 and 1
    model.train(train)
    state, before = copy.deepcopy(model.state_dict()), copy.deepcopy(model)(x)
    width = model.get_submodule(layer).out_channels
    assert split_neuron(model, layer, 1, ratio) == width
    widen(model, layer, by=4, ratio=ratio)
    assert model.get_submodule(layer).out_channels == width + 5
    torch.testing.assert_close(copy.deepcopy(model)(x), before, rtol=1e-9, atol=1e-9)
    assert merge_duplicates(model, layer) == 5
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-12, atol=1e-12)


def test_resnets_inner_layers() -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_channels=2)
    model = ResNetForImageClassification(config).double().eval()
    x = images()
    before = model(x).logits
    layer = "resnet.encoder.stages.1.layers.0.layer.0.convolution"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        widen(model, layer, by=3)
    assert model.get_submodule(layer).out_channels == 11
    torch.testing.assert_close(model(x).logits, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 3)), TypeError, "without groups"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3)), ValueError, "cannot be found"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(36, 2)), ValueError, "cannot be found"),
    ],
)
def test_refusals(model: nn.Module, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split_neuron(model, "0", 0)
