"""The weights of a neuron in the layer that makes it and in the layer that reads it.

A neuron of a convolution is an output channel. Its incoming weights are its kernel. Its outgoing weights are the slices
of the next layer's kernels. Behind ``nn.Flatten`` they are the columns of all its positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_conv1d(module: nn.Module) -> bool:
    """Return True for transformers' ``Conv1D``, a linear layer that stores its weight transposed."""
    return type(module).__name__ == "Conv1D"


def is_rewritable(module: nn.Module) -> bool:
    """Return True for the kinds of layers whose neurons can be split."""
    return isinstance(module, nn.Linear) or is_conv1d(module) or is_convolution(module)


def is_convolution(module: nn.Module) -> bool:
    """Return True for a convolution in which every output channel reads every input channel."""
    return isinstance(module, CONVOLUTIONS) and module.groups == 1


def incoming_rows(module: Any, tensor: Tensor | None = None) -> Tensor:
    """Return a view of the weight, or of a tensor of its shape, with one row a neuron: ``(outputs, m)``."""
    weight: Tensor = module.weight if tensor is None else tensor
    return weight.T if is_conv1d(module) else weight.flatten(1)


def outgoing_blocks(module: Any, width: int, tensor: Tensor | None = None) -> Tensor:
    """Return a view of the weight, or of a tensor of its shape, with one block a neuron: ``(width, outputs, ...)``.

    The last dimensions are those of the kernel, or the positions of a flattened image.
    """
    weight: Tensor = module.weight if tensor is None else tensor
    if isinstance(module, CONVOLUTIONS):
        return weight.movedim(1, 0)
    columns = weight if is_conv1d(module) else weight.T
    return columns if len(columns) == width else columns.unflatten(0, (width, -1)).movedim(1, -1)


def inputs_of(module: Any) -> int:
    """Return the number of inputs of a layer, channels for a convolution."""
    return int(module.weight.shape[0 if is_conv1d(module) else 1])


def channels_last(module: nn.Module, values: Tensor) -> Tensor:
    """Return a layer's inputs or outputs with the neurons in the last dimension."""
    return values.movedim(-1 - len(module.kernel_size), -1) if isinstance(module, CONVOLUTIONS) else values


def channels_in_place(module: nn.Module, values: Tensor) -> Tensor:
    """Return values whose neurons are last in the layout of the layer, the inverse of `channels_last`."""
    return values.movedim(-1, -1 - len(module.kernel_size)) if isinstance(module, CONVOLUTIONS) else values


def rewrite_incoming(module: Any, sources: Tensor) -> None:
    """Give the layer new parameters: output k is the former ``sources[k]``."""
    old = module.weight
    rows = old.detach().T[sources].T if is_conv1d(module) else old.detach()[sources]
    _set_parameter(module, "weight", rows)
    if module.bias is not None:
        _set_parameter(module, "bias", module.bias.detach()[sources])
    _set_sizes(module)


def rewrite_outgoing(module: Any, fan_out: Tensor, width: int) -> None:
    """Give the layer new parameters: ``fan_out`` holds one column a neuron, as `HiddenLayer.fan_out` returns it."""
    blocks = outgoing_blocks(module, width).shape[1:]
    new = fan_out.T.unflatten(1, blocks).to(module.weight.dtype)  # (new width, outputs, ...)
    if not isinstance(module, CONVOLUTIONS):
        new = new.movedim(-1, 1).flatten(0, 1) if new.dim() > 2 else new
        weight = new if is_conv1d(module) else new.T
    else:
        weight = new.movedim(0, 1)
    _set_parameter(module, "weight", weight)
    _set_sizes(module)


def rewrite_norm(module: Any, sources: Tensor) -> None:
    """Give a batch normalization new parameters and statistics: channel k is the former ``sources[k]``."""
    for name in ("weight", "bias"):
        if getattr(module, name) is not None:
            _set_parameter(module, name, getattr(module, name).detach()[sources])
    for name in ("running_mean", "running_var"):
        if getattr(module, name) is not None:
            setattr(module, name, getattr(module, name)[sources].clone())
    module.num_features = len(sources)


def norm_rows(module: Any) -> list[Tensor]:
    """Return the parameters and statistics of a batch normalization, each as a column ``(channels, 1)``."""
    tensors = (module.weight, module.bias, module.running_mean, module.running_var)
    return [tensor.detach()[:, None] for tensor in tensors if tensor is not None]


def _set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a new parameter that requires a gradient if the old one did."""
    old: Any = getattr(module, name)
    memory = torch.contiguous_format
    setattr(module, name, nn.Parameter(value.clone(memory_format=memory), old.requires_grad))


def _set_sizes(module: Any) -> None:
    if is_conv1d(module):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    else:
        module.out_features, module.in_features = module.weight.shape
