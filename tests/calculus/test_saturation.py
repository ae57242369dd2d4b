"""Derivatives of softmax and sigmoid functions, up to the third: those of torch in float64, and precise in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam.calculus.saturation import first_derivatives

N, C = 4, 3
V = torch.linspace(-1, 2, N * C, dtype=torch.float64).view(N, C)
T = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.3, 0.5, 0.2], [0, 0, 1]], dtype=torch.float64)
WEIGHT, POSITIVE = torch.rand(N, C).double(), torch.tensor([0.5, 1.0, 7.0], dtype=torch.float64)
bce = F.binary_cross_entropy_with_logits

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-softmax": lambda z: (z.log_softmax(-1) * V.to(z)).sum(),
    "log-softmax over rows": lambda z: (z.log_softmax(0) * V.to(z)).sum(),
    "squared log-softmax": lambda z: z.log_softmax(1).square().sum(),
    "softmax": lambda z: (z.softmax(-1) * V.to(z)).square().sum(),
    "softmax over rows": lambda z: (z.softmax(0) * V.to(z)).exp().sum(),
    "logsumexp": lambda z: z.logsumexp(1).square().sum(),
    "logsumexp that keeps the dimension": lambda z: (z.logsumexp(-1, keepdim=True) - z).square().sum(),
    "logsumexp over two": lambda z: z.logsumexp((0, 1)).square(),
    "sigmoid cross-entropy": lambda z: bce(z, T.to(z)),
    "its sum": lambda z: bce(z, T.to(z), reduction="sum").square(),
    "with weights": lambda z: (bce(z, T.to(z), WEIGHT.to(z), pos_weight=POSITIVE.to(z), reduction="none") ** 2).sum(),
    "logsigmoid": lambda z: (F.logsigmoid(z) * V.to(z)).square().sum(),
    "softplus": lambda z: (F.softplus(z, beta=1.5, threshold=3) * V.to(z)).square().sum(),
    "attention-like": lambda z: ((z.softmax(-1) @ V.T.to(z)).log_softmax(-1)).square().sum(),
}


def derivatives(loss: Tensor, z: Tensor, first: Callable[[Tensor, list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """First, second and third derivatives along fixed directions."""
    (g,) = first(loss, [z])
    (h,) = torch.autograd.grad((g * V.to(z)).sum(), z, create_graph=True)
    (t,) = torch.autograd.grad((h * V.flip(0).to(z)).sum(), z)
    return [g, h, t]


def of_torch(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [*torch.autograd.grad(loss, inputs, create_graph=True)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_same_as_torch_in_float64(name: str, scale: float) -> None:
    z = (scale * torch.randn(N, C, dtype=torch.float64)).requires_grad_()
    for found, expected in zip(
        derivatives(FUNCTIONS[name](z), z, first_derivatives), derivatives(FUNCTIONS[name](z), z, of_torch), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_the_hooks_are_gone_afterwards() -> None:
    z = torch.tensor([[40.0, 0.0]], requires_grad=True)
    loss = F.cross_entropy(z, torch.tensor([0]))
    (precise,) = first_derivatives(loss, [z])
    (stock,) = torch.autograd.grad(loss, z)
    assert precise[0, 0] != 0 and stock[0, 0] == 0


def test_masked_classes_stay_masked() -> None:
    z = torch.tensor([[3.0, -torch.inf, 0.0]], requires_grad=True)
    (g,) = first_derivatives(F.cross_entropy(z, torch.tensor([0])), [z])
    (h,) = torch.autograd.grad(g.square().sum(), z)
    assert g[0, 1] == 0 and h.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision_of_parameters_below(dtype: torch.dtype) -> None:
    """The gradient has the dtype of what it is taken by."""
    layer = nn.Linear(C, C).to(dtype)
    (g,) = first_derivatives(F.cross_entropy(layer(torch.ones(N, C, dtype=dtype)), torch.arange(N) % C), [layer.weight])
    assert g.dtype == dtype and g.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_that_are_not_sure_keep_their_digits_in_half_precision(dtype: torch.dtype) -> None:
    """The entries beside the top class's, which the sum over the others would cost a factor of 1 / p."""
    torch.manual_seed(0)
    z = torch.randn(N, 300).to(dtype).requires_grad_()
    loss, top = F.cross_entropy(z, torch.arange(N)), z.detach().argmax(-1, keepdim=True)
    unit = torch.zeros_like(z).scatter(-1, top, 1.0)
    (g,) = first_derivatives(loss, [z], 64.0)
    (column,) = torch.autograd.grad(g, z, unit)
    p = z.detach().double().softmax(-1)
    expected = 64 / N * p * (unit - p.gather(-1, top))
    assert (column - expected).norm() < 16 * torch.finfo(dtype).eps * expected.norm() / 4
