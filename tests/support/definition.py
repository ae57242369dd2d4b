"""Relative flatness straight from its definition, with nothing of hf_fam in it; for layers of a few hundred weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from hf_fam.flatness import directions
from hf_fam.flatness.batch import Seeds


def kappa(model: nn.Module, layer: str, batch: dict[str, Any]) -> Tensor:
    """``sum_{s,t} <w_s, w_t> Tr H_{s,t}``, H the full Hessian of the loss by the layer's weight."""
    full = hessian(lambda w: _call(model, layer, w, batch).loss, _matrix(model, layer), vectorize=True)
    w = _matrix(model, layer)
    return torch.einsum("si,ti,sjtj->", w, w, full)


def gauss_newton_kappa(model: nn.Module, layer: str, head: str, batch: dict[str, Any]) -> Tensor:
    """The same with ``J^T (d2L/dlogits2) J`` for H, J the Jacobian of the head's output by the layer's weight."""
    w, module = _matrix(model, layer), model.get_submodule(head)

    def logits(weight: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with _output_hook(module, seen.append):
            _call(model, layer, weight, batch)
        return seen[0]

    def loss(given: Tensor) -> Tensor:
        with _output_hook(module, lambda output: given):
            return model(**batch).loss

    z = logits(w).detach()
    j = jacobian(logits, w, vectorize=True).reshape(z.numel(), *w.shape)
    h = hessian(loss, z, vectorize=True).reshape(z.numel(), z.numel())
    pushed = torch.einsum("ab,btj->atj", h, j)
    return torch.einsum("si,ti,asj,atj->", w, w, j, pushed)


def directional_derivative(
    value: Callable[[], Tensor], parameters: Sequence[Tensor], direction: Sequence[Tensor], step: float = 1e-5
) -> Tensor:
    """Of a function of the parameters' current values, by central differences."""
    with _moved(parameters, direction, step):
        above = value()
    with _moved(parameters, direction, -step):
        below = value()
    return (above - below) / (2 * step)


def unit_direction(parameters: Sequence[Tensor]) -> list[Tensor]:
    """A random direction over all parameters together, of length 1."""
    drawn = [torch.randn_like(p) for p in parameters]
    length = torch.stack([d.square().sum() for d in drawn]).sum().sqrt()
    return [d / length for d in drawn]


def complete_basis(monkeypatch: pytest.MonkeyPatch, features: int) -> None:
    """Let hf_fam's probes run through a complete basis, so that their mean is kappa and no estimate of it.

    Over the vectors r = sqrt(m) e_k the mean of ``r r^T`` is the identity, as it is in expectation over signs. Number k
    of the probes takes vector ``k mod m`` for r and vector ``k div m`` for a, the same in every block of A: m probes
    are complete where rows are uncoupled (u = ||phi|| W r), m^2 where they are coupled (u = (a . phi) W r).
    """
    basis = features**0.5 * torch.eye(features, dtype=torch.float64)

    def row(shape: torch.Size, like: Tensor, seeds: Seeds, stream: tuple[int, str]) -> Tensor:
        probe, name = stream
        vector = basis[probe % features if name == "r" else probe // features]
        return vector.repeat(shape[-1] // features).expand(shape)

    monkeypatch.setattr(directions, "_signs", row)


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Compute in float64 whatever a model wants to compute in float32, such as its normalizations and its loss."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


class _Double(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        args = [torch.float64 if a is torch.float32 else a for a in args]
        kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _matrix(model: nn.Module, layer: str) -> Tensor:
    """W, shape (d, m), also where it is stored transposed (Conv1D) or as a kernel."""
    module = model.get_submodule(layer)
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight.flatten(1)


def _call(model: nn.Module, layer: str, matrix: Tensor, batch: dict[str, Any]) -> Any:
    """The model with another W in this layer alone, even where the weight is tied to another module's."""
    module = model.get_submodule(layer)
    weight = matrix.T if type(module).__name__ == "Conv1D" else matrix.view_as(module.weight)
    return functional_call(model, {f"{layer}.weight": weight}, kwargs=batch, tie_weights=False)


@contextlib.contextmanager
def _output_hook(module: nn.Module, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda module, args, output: act(output))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], by: float) -> Iterator[None]:
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=by)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)
