"""The dense reference against independent software, and its variants against loops over the definition."""

from __future__ import annotations

import pytest
import torch
from curvlinops import HessianLinearOperator
from torch import nn
from torch.nn import functional as F

from hf_fam.flatness.estimators.dense import MAX_WEIGHTS, dense_flatness, weight_hessian
from support.tails import make


@pytest.mark.parametrize("tail", ["linear", "tanh_mlp", "layernorm_gelu", "residual", "attention"])
def test_hessian_equals_curvlinops(tail: str) -> None:
    case = make(tail, 0)
    ours = weight_hessian(case.run(), case.layer.weight).detach()
    data = [(case.inputs, case.labels)]
    operator = HessianLinearOperator(case.model, nn.CrossEntropyLoss(), [case.layer.weight], data)
    theirs = operator @ torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(ours.reshape(12, 12), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tail", ["tanh_mlp", "attention"])
def test_hessian_equals_torch_func(tail: str) -> None:
    case = make(tail, 1)
    parameters = dict(case.model.named_parameters())
    name = next(n for n, p in parameters.items() if p is case.layer.weight)

    def loss_of(weight: torch.Tensor) -> torch.Tensor:
        return case.loss(torch.func.functional_call(case.model, {**parameters, name: weight}, (case.inputs,)))

    theirs = torch.func.hessian(loss_of)(case.layer.weight.detach())
    torch.testing.assert_close(weight_hessian(case.run(), case.layer.weight), theirs, rtol=1e-9, atol=1e-12)


def test_variants_by_loops() -> None:
    case = make("tanh_mlp", 2)
    w, loss = case.layer.weight, case.run()
    h, found = weight_hessian(loss, w).detach(), dense_flatness(loss, w)
    w = w.detach()
    rows = range(len(w))
    kappa = sum(float(w[s] @ w[t]) * float(torch.trace(h[s, :, t])) for s in rows for t in rows)
    kappa_max = sum(float(w[s] @ w[s]) * float(torch.linalg.eigvalsh(h[s, :, s])[-1]) for s in rows)
    layerwise = float(w.square().sum()) * sum(float(torch.trace(h[s, :, s])) for s in rows)
    assert found.kappa.item() == pytest.approx(kappa, rel=1e-10)
    assert found.kappa_max.item() == pytest.approx(kappa_max, rel=1e-10)
    assert found.layerwise.item() == pytest.approx(layerwise, rel=1e-10)


def test_too_large_and_frozen_layers_are_refused() -> None:
    large = nn.Linear(200, 100)
    assert large.weight.numel() > MAX_WEIGHTS
    with pytest.raises(ValueError, match=r'estimator="dense".*"closed_form"'):
        dense_flatness(large(torch.randn(2, 200)).square().sum(), large.weight)
    frozen = nn.Linear(3, 2)
    frozen.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="unfreeze"):
        dense_flatness(F.mse_loss(frozen(torch.randn(2, 3)), torch.zeros(2, 2)), frozen.weight)
