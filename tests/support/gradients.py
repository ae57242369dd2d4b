"""Gradients compared parameter by parameter, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def assert_same_gradients(model: nn.Module, found: Tensor, true: Tensor, rtol: float = 1e-8) -> None:
    """d found / d p equals d true / d p for every parameter p, relative to the largest gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_found, of_true = (
        torch.autograd.grad(y, parameters, retain_graph=True, materialize_grads=True) for y in (found, true)
    )
    scale = max(g.abs().max() for g in of_true)
    assert scale > 0
    for f, t in zip(of_found, of_true, strict=True):
        torch.testing.assert_close(f, t, rtol=rtol, atol=rtol * float(scale))


def assert_gradient_by_finite_differences(
    model: nn.Module, value: Callable[[], Tensor], rtol: float = 1e-5, step: float = 1e-6
) -> None:
    """The autograd gradient of ``value`` equals central differences along a random direction of every parameter."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value(), parameters, materialize_grads=True)
    scale = max(g.abs().max() for g in gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step * direction)
        above = value().detach()
        with torch.no_grad():
            parameter.sub_(2 * step * direction)
        below = value().detach()
        with torch.no_grad():
            parameter.add_(step * direction)
        numeric = (above - below) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=rtol, atol=rtol * float(scale))
