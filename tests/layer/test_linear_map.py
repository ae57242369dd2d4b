"""Norms, projections and products of a convolution's map, against patches that torch's own convolution cuts out."""

from __future__ import annotations

import random
import secrets
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_fam.layer.kinds import linear_map_of
from hf_fam.layer.linear_map import ConvolutionMap
from support.layers import random_convolution, size_for


def case(dimensions: int, batched: bool) -> tuple[Any, ConvolutionMap, Tensor]:
    seed = secrets.randbits(32)
    print("seed", seed)  # shown where the test fails
    torch.manual_seed(seed)
    layer = random_convolution(dimensions, random.Random(seed))
    linear_map = linear_map_of(layer)
    assert isinstance(linear_map, ConvolutionMap)
    x = torch.randn(*([3] if batched else []), 2, *size_for(dimensions), dtype=torch.float64)
    return layer, linear_map, x


def patches(layer: Any, x: Tensor) -> Tensor:
    """phi_t, shape ``(..., G, m)``: every entry is picked by a kernel with a single one."""
    channels, places = layer.weight.shape[1], layer.weight[0, 0].numel()
    picked = []
    for k in range(channels * places):
        kernel = torch.zeros(layer.groups, channels * places, dtype=x.dtype)
        kernel[:, k] = 1
        picked.append(layer._conv_forward(x, kernel.view(layer.groups, *layer.weight.shape[1:]), None))
    return torch.stack(picked, -1).movedim(1 if x.dim() > layer.weight.dim() - 1 else 0, -2)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_against_patches(dimensions: int, batched: bool) -> None:
    layer, linear_map, x = case(dimensions, batched)
    phi = patches(layer, x)
    groups, m = phi.shape[-2:]
    assert (linear_map.groups, linear_map.in_features) == (groups, m)
    torch.testing.assert_close(linear_map.feature_rows(x), phi.flatten(-2))
    torch.testing.assert_close(linear_map.norms(x), phi.norm(dim=-1))
    a = torch.randn(4, groups * m, dtype=torch.float64)
    expected = torch.einsum("...gm,kgm->...gk", phi, a.view(4, groups, m))
    torch.testing.assert_close(linear_map.projections(x, a), expected)
    z = linear_map.times(phi.flatten(-2))
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(z + bias, linear_map.rows(layer(x)))
    assert torch.equal(linear_map.outputs(linear_map.rows(x)), x)
    assert linear_map.has_items(x) == batched
    if batched:
        assert linear_map.vector_shape(x, an_item=True) == (3, groups * m)
        each = torch.randn(3, 4, groups * m, dtype=torch.float64)
        expected = torch.einsum("i...gm,ikgm->i...gk", phi, each.view(3, 4, groups, m))
        torch.testing.assert_close(linear_map.projections(x, each), expected)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_row_gets_signs_of_its_own(dimensions: int) -> None:
    layer, linear_map, x = case(dimensions, batched=True)
    shape = linear_map.sign_shape(x)
    signs = torch.randint(0, 2, shape).double() * 2 - 1
    outputs = linear_map.times_signs(signs)
    assert outputs.shape == linear_map.rows(layer(x)).shape
    unpadded = type(layer)(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0, layer.dilation, layer.groups, False
    ).double()
    r = patches(unpadded, signs)
    assert (r.abs() == 1).all(), "no row's vector contains padding"
    torch.testing.assert_close(outputs, linear_map.times(r.flatten(-2)))
    if r[0].numel() > r.shape[-2:].numel():
        assert r.flatten(0, -3).unique(dim=0).shape[0] > 1


def test_empty_patches_have_gradient_zero() -> None:
    linear_map = ConvolutionMap(1, 1, (2,), lambda: torch.ones(1, 1, 2), padding=(1,))
    x = torch.tensor([[[0.0, 0.0, 3.0]]], requires_grad=True)
    norms = linear_map.norms(x)
    assert norms.flatten().tolist() == [0, 0, 3, 3]
    (gradient,) = torch.autograd.grad(norms.sum(), x)
    assert gradient.flatten().tolist() == [0, 0, 2]
