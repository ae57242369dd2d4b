"""The certificate of convolutions: B and D in every direction, against second derivatives of the split network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hf_fam.landscape import HalfSquaredError, escape_path, find_critical_point, split_certificate, split_neuron
from hf_fam.landscape.hidden_layer_search import find_hidden_layer
from hf_fam.landscape.path_builder import Split


def two_dimensional() -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 4, (1, 2), padding=(0, 1), dilation=(1, 2)),
        nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 2),
    )  # fmt: skip
    return model, torch.randn(3, 2, 6, 6)


def one_dimensional() -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2, bias=False), nn.SiLU(), nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular"), nn.Tanh(),
        nn.Flatten(), nn.Linear(8, 1),
    )  # fmt: skip
    return model, torch.randn(3, 2, 5)


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("build", [two_dimensional, one_dimensional])
def test_b_and_d_are_second_derivatives(build: object, layer: str) -> None:
    torch.manual_seed(0)
    model, x = build()
    model, x = model.double(), x.double()
    y = torch.randn_like(model(x))
    ratio = 0.3
    certificate = split_certificate(model, HalfSquaredError(), [(x[:2], y[:2]), (x[2:], y[2:])], layer, 1, ratio)
    wide = copy.deepcopy(model)
    v = find_hidden_layer(model, layer).fan_out[:, 1]
    new = split_neuron(wide, layer, 1, ratio)
    split = Split(find_hidden_layer(wide, layer), 1, new, v)
    block = certificate.curvature.block(ratio)
    parameters = list(wide.parameters())
    sizes = [p.numel() for p in parameters]

    def loss(displacement: Tensor) -> Tensor:
        parts = displacement.split(sizes)
        moved = {
            name: p.detach() + part.view_as(p) for (name, p), part in zip(wide.named_parameters(), parts, strict=True)
        }
        return HalfSquaredError()(torch.func.functional_call(wide, moved, (x,)), y)

    coordinates = torch.randn(6, len(block), dtype=torch.float64)
    directions = torch.stack([split.displacement(wide, c, ratio).detach() for c in coordinates])
    hessian = torch.func.hessian(lambda c: loss(c @ directions))(torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(hessian, coordinates @ block @ coordinates.T, rtol=1e-8, atol=1e-10)


def test_a_convolution_is_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 1)).double()
    x = torch.randn(30, 1, 5).double()
    y = (x[:, :, :2].prod(2) + x[:, 0, 3:].sum(1, keepdim=True)).double()
    found = find_critical_point(model, HalfSquaredError(), (x, y))
    certificate = split_certificate(found.model, HalfSquaredError(), (x, y), "0", 0)
    path = escape_path(found.model, certificate, HalfSquaredError(), (x, y), steps=30)
    assert path.escapes and all(b <= a + 1e-9 * a for a, b in zip(path.losses, path.losses[1:], strict=False))


def test_normalization_and_pooling_between_are_refused() -> None:
    for between in (nn.BatchNorm1d(3), nn.AvgPool1d(2)):
        model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), between, nn.Conv1d(3, 2, 2), nn.Flatten())
        x = torch.randn(4, 2, 8)
        with pytest.raises(ValueError, match="a normalization or pooling lies between '0' and '3'"):
            split_certificate(model, HalfSquaredError(), (x, torch.zeros_like(model(x))), "0", 0)
