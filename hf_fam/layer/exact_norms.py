"""Normalization layers that can be differentiated three times.

The gradient of kappa is a third derivative of the tail. For torch's fused layer, batch and instance normalizations,
first and second derivatives are right and third ones silently wrong (`hf_fam.calculus.third_derivatives`). So
normalizations above the feature layer are computed from elementary operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..calculus.derivatives import wide
from ..calculus.torch_internals import BatchOrInstanceNorm
from .feature_layer import FeatureLayer

_NORM_LAYERS = (nn.LayerNorm, BatchOrInstanceNorm)


class ExactNorms:
    """Computes normalizations above a feature layer exactly while it is captured.

    Args:
        model: the model that contains the layer.
        layer: the feature layer. A normalization above it is called later.
    """

    def __init__(self, model: nn.Module, layer: FeatureLayer) -> None:
        self._layer = layer
        self._norms = [m for m in model.modules() if isinstance(m, _NORM_LAYERS) or "Norm" in type(m).__name__]
        self._above: set[nn.Module] = set()
        self._active: list[_ElementaryNorms] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks, once."""
        if not self._hooks:
            for norm in self._norms:
                self._hooks.append(norm.register_forward_pre_hook(self._before))
                self._hooks.append(norm.register_forward_hook(self._after, always_call=True))

    def detach(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, module: nn.Module, args: Any) -> None:
        if self._layer.was_called:
            self._above.add(module)
        # A checkpointed block runs again in the backward pass and must save the same tensors.
        if module in self._above and (self._layer.was_called or self._layer.is_recomputing):
            mode = _ElementaryNorms()
            mode.__enter__()
            self._active.append(mode)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._active:
            self._active.pop().__exit__(None, None, None)


class _ElementaryNorms(TorchFunctionMode):
    """Computes normalizations from elementary operations, and everything else as usual."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _ELEMENTARY.get(func, func)(*args, **(kwargs or {}))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.layer_norm`` from elementary operations."""
    x = input.to(wide(input.dtype))
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardize(x, dims, eps), weight, bias, input)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Compute ``torch.nn.functional.rms_norm`` from elementary operations."""
    x = input.to(wide(input.dtype))
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(x * (x.square().mean(dims, keepdim=True) + eps).rsqrt(), weight, None, input)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.batch_norm`` from elementary operations.

    torch's own function updates the running statistics.
    """
    if not training:  # an affine map with constant statistics: torch's derivatives are right
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if running_mean is not None:
        with torch.no_grad():
            F.batch_norm(input, running_mean, running_var, None, None, True, momentum, eps)
    x = input.to(wide(input.dtype))
    dims = (0, *range(2, input.dim()))
    return _affine(_standardize(x, dims, eps), _per_channel(weight, x), _per_channel(bias, x), input)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.instance_norm`` from elementary operations."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        with torch.no_grad():
            F.instance_norm(input, running_mean, running_var, None, None, True, momentum, eps)
    x = input.to(wide(input.dtype))
    dims = tuple(range(2, input.dim()))
    return _affine(_standardize(x, dims, eps), _per_channel(weight, x), _per_channel(bias, x), input)


_ELEMENTARY: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}


def _standardize(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centered = x - x.mean(dims, keepdim=True)
    return centered * (centered.square().mean(dims, keepdim=True) + eps).rsqrt()


def _per_channel(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.view(1, -1, *[1] * (x.dim() - 2))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, like: Tensor) -> Tensor:
    x = x if weight is None else x * weight
    x = x if bias is None else x + bias
    return x if torch.is_autocast_enabled(like.device.type) else x.to(like.dtype)
