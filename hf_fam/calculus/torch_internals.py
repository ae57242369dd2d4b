"""Attributes that torch does not document; every one that hf_fam reads is read here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

# Base classes: of convolutions; of batch normalizations; of batch and instance normalizations.
Convolution = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._BatchNorm
BatchOrInstanceNorm = nn.modules.batchnorm._NormBase
# Parametrizations after which the largest singular value of a weight is 1.
BoundedWeight = (nn.utils.parametrizations._SpectralNorm, nn.utils.parametrizations._Orthogonal)


def version(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place.

    Examples:
        >>> x = torch.zeros(2)
        >>> before = version(x)
        >>> version(x.add_(1)) - before
        1
    """
    return tensor._version


def is_in_backward_pass() -> bool:
    """Return True if this thread is inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


def saved(node: Node, name: str, default: Any = None) -> Any:
    """Return a value that a backward node keeps from the forward pass.

    Args:
        node: of an autograd graph.
        name: of the value, such as ``"result"``.
        default: returned for a node without such a value.
    """
    return getattr(node, f"_saved_{name}", default)


def is_over_last_dimension(log_softmax: Node) -> bool:
    """Return True if a log-softmax in an autograd graph runs over the last dimension of its input."""
    result: Tensor = saved(log_softmax, "result")
    return dimension(saved(log_softmax, "dim")) in (result.dim() - 1, -1)


def dimension(number: int) -> int:
    """Return a dimension that a node keeps: torch returns a negative one as an unsigned number.

    Examples:
        >>> dimension(2**64 - 1), dimension(1)
        (-1, 1)
    """
    return number - 2**64 if number >= 2**63 else number


def own_parameters(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return the parameters of a module itself, including those that are None."""
    return module._parameters


def children(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return the direct submodules of a module.

    A submodule that is registered twice appears twice.
    """
    return module._modules


def forward_hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """Yield the forward hooks of a module."""
    yield from module._forward_hooks.values()


def inside_compiled(model: nn.Module) -> nn.Module | None:
    """Return the model that ``torch.compile(model)`` wraps; None for any other module."""
    inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else None


def inside_checkpointed(module: nn.Module) -> nn.Module:
    """Return the module that torch's ``checkpoint_wrapper`` wraps; the module itself if it does not."""
    inside = module._modules.get("_checkpoint_wrapped_module")
    return module if inside is None else inside


def is_compiled_in_place(model: nn.Module) -> bool:
    """Return True if ``model.compile()`` was called."""
    return getattr(model, "_compiled_call_impl", None) is not None


def is_dynamo_loaded() -> bool:
    """Return True if torch's compiler has been imported."""
    return "torch._dynamo" in sys.modules
