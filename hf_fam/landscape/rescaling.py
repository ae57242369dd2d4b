"""Multiply the outputs of a module, divide the columns of its readers, and check that the function stays."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .neuron_weights import CONVOLUTIONS, is_conv1d, is_rewritable

TOLERANCE = 1e-6


class NotInvariantError(ValueError):
    """The change would alter the function; nothing was changed."""


@contextlib.contextmanager
def keep_function(
    model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Tensor] | None, change: str
) -> Iterator[None]:
    """Check that the block keeps the function; otherwise restore the weights.

    Args:
        model: compared in evaluation mode.
        example: inputs.
        forward: see `rescale_between`.
        change: description of the change, for the error.

    Raises:
        NotInvariantError: the outputs differ by more than `tolerance` of the largest one.
    """
    saved = copy.deepcopy(model.state_dict())
    before = evaluate(model, example, forward)
    try:
        yield
        after = evaluate(model, example, forward)
    except BaseException:
        model.load_state_dict(saved)
        raise
    difference = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    if not difference <= tolerance(before.dtype):
        model.load_state_dict(saved)
        raise NotInvariantError(
            f"{change} changes the function by {difference:.2g} of its size, so nothing was changed. Possible causes: "
            "an operation between them is not homogeneous (GELU, SiLU, tanh, softmax, a normalization from below), or "
            "ties several features (heads, rotary positions). Or a residual connection reads the features, too."
        )


def tolerance(dtype: torch.dtype) -> float:
    """Return the tolerated change, relative to the largest output."""
    if dtype in (torch.float16, torch.bfloat16):
        return 4 * torch.finfo(dtype).eps
    return TOLERANCE if dtype == torch.float64 else 10 * TOLERANCE


@torch.no_grad()
def evaluate(model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Tensor] | None) -> Tensor:
    """Return the model's outputs in evaluation mode: a tensor, its logits or its last hidden state."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        if forward is not None:
            return forward(model, example)
        output = model(**example) if isinstance(example, Mapping) else model(example)
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    raise ValueError(
        "the model returns no tensor, no logits and no last hidden state: give forward=lambda model, example: ..."
    )


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse names that are no modules."""
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"{name!r} is not a module of this {type(model).__name__}: see model.named_modules().")


def check_factors(factors: Any, name: str, count: int) -> Tensor:
    """Return one factor for every output, in float64, shape ``(count,)``."""
    c = torch.as_tensor(factors, dtype=torch.float64)
    if c.shape not in ((), (count,)) or not bool((c > 0).all()) or not bool(c.isfinite().all()):
        raise ValueError(
            f"factors={factors!r}: factors must be {count} positive finite numbers, one for every output of '{name}', "
            "or a single one."
        )
    return c.expand(count)


def count_outputs(name: str, module: nn.Module) -> int:
    """Return the number of outputs of a module that its weights can scale, or refuse it."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and (weight.dim() == 1 or has_columns(module)):
        return weight.shape[-1 if is_conv1d(module) else 0]
    raise ValueError(
        f"'{name}' is a {type(module).__name__}, whose outputs cannot be scaled by weights: name a linear or "
        "convolution layer, or a normalization with weight and bias."
    )


@torch.no_grad()
def multiply_outputs(module: nn.Module, factors: Tensor) -> None:
    """Multiply the outputs of a module by factors, in its weight and bias."""
    weight: Any = module.weight
    rows = weight.T if is_conv1d(module) else weight
    rows.mul_(factors.to(weight).view(-1, *[1] * (weight.dim() - 1)))
    bias: Any = getattr(module, "bias", None)
    if bias is not None:
        bias.mul_(factors.to(bias))


@torch.no_grad()
def divide_columns(name: str, module: nn.Module, factors: Tensor) -> None:
    """Divide the columns of a layer by the factors of its features, or refuse the layer."""
    if not is_rewritable(module):
        raise ValueError(f"'{name}' is a {type(module).__name__}: name a linear or an ungrouped convolution layer.")
    weight: Any = module.weight
    weight = weight.T if is_conv1d(module) else weight
    c = factors.to(weight)
    columns = weight.shape[1]
    if columns % len(c):
        raise ValueError(
            f"'{name}' has {columns} inputs, not a multiple of {len(c)} factors: name the layer that reads the outputs."
        )
    # In a flattened image, all positions of a channel are adjacent.
    c = c.repeat_interleave(columns // len(c))
    weight.div_(c.view(1, -1, *[1] * (weight.dim() - 2)))


def has_columns(module: nn.Module) -> bool:
    """Return True for linear layers and convolutions."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or is_conv1d(module)
