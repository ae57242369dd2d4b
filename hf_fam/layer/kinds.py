"""Which modules can be a feature layer, and their linear map. A kind is a geometry and a way to read W."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..calculus.torch_internals import Convolution
from .adapters import base_layer, is_adapted, merged_weight, refuse_other_adapters
from .linear_map import ConvolutionMap, LinearMap, RowMap
from .quantized import dequantized_weight, is_quantized

SUPPORTED = (
    "torch.nn.Linear, Conv1d, Conv2d, Conv3d, GPT-2's Conv1D, linear layers of bitsandbytes (or with a method "
    "`dequantize`), and any of these with LoRA or DoRA of PEFT"
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def has_weight_matrix(module: nn.Module) -> bool:
    """Whether the module multiplies its input by a weight; not all that do are supported."""
    module = base_layer(module)
    return isinstance(module, (nn.Linear, Convolution)) or _is_conv1d(module) or _is_quantized_row(module)


def has_bias(module: nn.Module) -> bool:
    """Whether the layer adds a vector of its own to what it returns."""
    return getattr(base_layer(module), "bias", None) is not None


def needs_proof(module: nn.Module) -> bool:
    """Whether the layer's class has a forward pass of its own, which need not be ``W phi + b``."""
    module = base_layer(module)
    if is_quantized(module) or _is_conv1d(module):
        return False
    return type(module).forward not in (nn.Linear.forward, *(kind.forward for kind in _CONVOLUTIONS))


def linear_map_of(module: nn.Module) -> LinearMap:
    """The linear map of a layer.

    Args:
        module: the layer; for a layer with an adapter, the wrapper that is called in its place.

    Raises:
        TypeError: the layer is of a kind that is not supported; the message names it and says what is.

    Examples:
        >>> W = linear_map_of(nn.Conv2d(4, 6, kernel_size=3, groups=2)).weight
        >>> tuple(W.shape)  # d outputs, m = 4 / 2 channels x 3 x 3
        (6, 18)
    """
    try:
        return _adapted(module) if is_adapted(module) else _plain(module)
    except TypeError as error:
        raise TypeError(f"{error}. Supported: {SUPPORTED}.") from error


def _adapted(module: nn.Module) -> LinearMap:
    refuse_other_adapters(module)
    found = _plain(base_layer(module))
    stored, matrix = found.stored, found.matrix
    found.stored = lambda: merged_weight(module, matrix(stored()))
    found.matrix = lambda weight: weight
    return found


def _plain(module: nn.Module) -> LinearMap:
    layer: Any = module
    if is_quantized(module) and (isinstance(module, nn.Linear) or _is_quantized_row(module)):
        return RowMap(layer.out_features, layer.in_features, lambda: dequantized_weight(module))
    if isinstance(getattr(module, "weight", None), Tensor):
        _refuse_codes(layer.weight)
    if isinstance(module, _CONVOLUTIONS):
        return ConvolutionMap(
            layer.out_channels,
            layer.in_channels,
            layer.kernel_size,
            lambda: _weight(module),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
        )
    if _is_conv1d(module):
        return RowMap(layer.nf, layer.nx, lambda: _weight(module), lambda stored: stored.t())
    if isinstance(module, nn.Linear):
        return RowMap(layer.out_features, layer.in_features, lambda: _weight(module))
    raise TypeError(f"is a {type(module).__name__}, which is no kind of layer that hf_fam can take")


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, which is transformers' and stores W transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def _is_quantized_row(module: nn.Module) -> bool:
    return is_quantized(module) and hasattr(module, "in_features") and hasattr(module, "out_features")


def _weight(module: Any) -> Tensor:
    """The weight of the forward pass that is over."""
    if not parametrize.is_parametrized(module, "weight"):
        return module.weight
    parametrization = module.parametrizations["weight"]
    modes = [(part, part.training) for part in parametrization.modules()]
    parametrization.eval()  # reading it must not move it on, as spectral normalization would
    try:
        return parametrization()
    finally:
        for part, training in modes:
            part.training = training


def _refuse_codes(weight: Tensor) -> None:
    """Numbers that stand for others."""
    package = type(weight).__module__.split(".")[0]
    if not weight.is_floating_point() or weight.itemsize < 2 or package == "torchao":
        kind = f"{package}'s {type(weight).__name__}" if package == "torchao" else f"{weight.dtype}"
        raise TypeError(f"has a quantized weight ({kind}) that hf_fam does not know how to read")
