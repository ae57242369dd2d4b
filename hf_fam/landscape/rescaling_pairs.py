"""Which modules of a model can exchange the scales of their neurons, found by running it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .neuron_weights import CONVOLUTIONS, is_rewritable
from .rescaling import (
    count_outputs,
    divide_columns,
    evaluate,
    has_columns,
    multiply_outputs,
)

# Changes that are rounding, relative to the size of what is compared. Some models compute parts in float32 always.
SAME = 2e-6


@dataclass(frozen=True)
class Pair:
    """A module and its readers, whose scales can be exchanged.

    Attributes:
        first: name of the module whose outputs are multiplied: a layer, or a normalization.
        readers: names of the layers whose columns are divided.
        neurons: number of factors.
    """

    first: str
    readers: tuple[str, ...]
    neurons: int


@torch.no_grad()
def find_pairs(
    model: nn.Module, example: Any, *, forward: Callable[[nn.Module, Any], Tensor] | None = None
) -> list[Pair]:
    """Return the modules whose outputs can be rescaled, with their readers.

    They are found by experiment, on a copy in float64. The outputs of one layer or normalization are multiplied by
    random factors. Hooks show at which layers exactly these factors arrive, and the columns of those layers are divided
    by them. If the outputs of the model are the same, it is a pair. So everything that the model computes between them
    counts: functions, branches, residual connections, attention.

    Args:
        model: any module; it stays as it is.
        example: inputs: a tensor, or a dictionary of arguments. They must reach all layers.
        forward: ``forward(model, example)`` returns a tensor; by default the output, its logits or its last hidden
            state.

    Returns:
        The pairs, in the order of the computation.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> find_pairs(model, torch.randn(8, 3))  # not through tanh
        [Pair(first='0', readers=('2',), neurons=5)]
    """
    copied = copy.deepcopy(model).double().eval()
    example = _double(example)
    with recorded_inputs(copied) as inputs:
        before = evaluate(copied, example, forward)
    pairs = []
    for first, module in _in_order_of_calls(copied, example, forward):
        pair = _pair_of(copied, first, module, example, forward, inputs, before)
        if pair is not None:
            pairs.append(pair)
    return pairs


def _pair_of(
    model: nn.Module,
    first: str,
    module: nn.Module,
    example: Any,
    forward: Callable[[nn.Module, Any], Tensor] | None,
    inputs: dict[str, list[Tensor]],
    before: Tensor,
) -> Pair | None:
    """Try one module; the model is as before afterwards."""
    count = count_outputs(first, module)
    factors = 2 ** (2 * torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    modules = dict(model.named_modules())
    changed = [module]
    saved = [{name: p.clone() for name, p in module.named_parameters(recurse=False)}]
    try:
        multiply_outputs(module, factors)
        with recorded_inputs(model) as moved:
            evaluate(model, example, forward)
        readers = [
            name
            for name in inputs
            if name != first
            and is_rewritable(modules[name])
            and _is_multiplied(modules[name], inputs[name], moved[name], factors)
        ]
        for name in readers:
            changed.append(modules[name])
            saved.append({key: p.clone() for key, p in modules[name].named_parameters(recurse=False)})
            divide_columns(name, modules[name], factors)
        if not readers or not _is_same(evaluate(model, example, forward), before):
            return None
    finally:
        for one, parameters in zip(reversed(changed), reversed(saved), strict=True):
            for name, value in parameters.items():
                one.get_parameter(name).copy_(value)
    return Pair(first, tuple(readers), count)


def _is_multiplied(module: nn.Module, before: list[Tensor], after: list[Tensor], factors: Tensor) -> bool:
    """Return True if the features of a layer were multiplied by the factors, and by nothing else."""
    channel = -1 - len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else -1
    for old, new in zip(before, after, strict=True):
        width = old.shape[channel]
        if old.shape != new.shape or width % len(factors) or not bool(old.any()):
            return False
        c = factors.to(old).repeat_interleave(width // len(factors))
        if not _is_same(new, (old.movedim(channel, -1) * c).movedim(-1, channel)):
            return False
    return True


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= SAME * other.abs().max())


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record the inputs of all linear layers and convolutions inside the ``with`` block, by their names."""
    inputs: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def on_call(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.setdefault(name, []).append(args[0].detach().clone())

        return on_call

    hooks = [
        module.register_forward_pre_hook(hook(name)) for name, module in model.named_modules() if has_columns(module)
    ]
    try:
        yield inputs
    finally:
        for handle in hooks:
            handle.remove()


def _in_order_of_calls(
    model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Tensor] | None
) -> list[tuple[str, nn.Module]]:
    """Return the layers and normalizations that run, in the order of their first calls."""
    order: dict[str, nn.Module] = {}

    def hook(name: str) -> Callable[..., None]:
        def on_call(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            order.setdefault(name, module)

        return on_call

    candidates = [
        (name, module) for name, module in model.named_modules() if has_columns(module) or _is_normalization(module)
    ]
    hooks = [module.register_forward_hook(hook(name)) for name, module in candidates]
    try:
        evaluate(model, example, forward)
    finally:
        for handle in hooks:
            handle.remove()
    return list(order.items())


def _is_normalization(module: nn.Module) -> bool:
    """Return True for a module whose only weight has a number for every output, as in normalizations."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and not isinstance(module, nn.PReLU)


def _double(example: Any) -> Any:
    """Return the inputs with floating-point tensors in float64."""
    if isinstance(example, Mapping):
        return {name: _double(value) for name, value in example.items()}
    return example.double() if isinstance(example, Tensor) and example.is_floating_point() else example
