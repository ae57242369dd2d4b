"""Which modules can be a feature layer, and their linear maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..calculus.torch_internals import Convolution
from ..inputs.text import with_article
from .adapters import base_layer, is_adapted, merged_weight, refuse_other_adapters
from .linear_map import ConvolutionMap, LinearMap, RowMap
from .quantized import dequantized_weight, is_quantized

SUPPORTED = (
    "torch.nn.Linear, Conv1d, Conv2d, Conv3d, GPT-2's Conv1D, linear layers of bitsandbytes (or with a method "
    "`dequantize`), and any of these with LoRA or DoRA of PEFT"
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def has_weight_matrix(module: nn.Module) -> bool:
    """Return True if the module multiplies its input by a weight.

    Not all such modules are supported as feature layers.
    """
    module = base_layer(module)
    return isinstance(module, (nn.Linear, Convolution)) or _is_conv1d(module) or _is_quantized_row(module)


def has_bias(module: nn.Module) -> bool:
    """Return True if the layer adds a bias to its output."""
    return getattr(base_layer(module), "bias", None) is not None


def has_custom_forward(module: nn.Module) -> bool:
    """Return True if the layer's class has its own forward pass.

    Such a forward pass need not be ``W phi + b``.
    """
    module = base_layer(module)
    if is_quantized(module) or _is_conv1d(module):
        return False
    return type(module).forward not in (nn.Linear.forward, *(kind.forward for kind in _CONVOLUTIONS))


def linear_map_of(module: nn.Module) -> LinearMap:
    """Return the linear map of a layer.

    Args:
        module: the layer. For a layer with an adapter, it is the wrapper that runs in its place.

    Raises:
        TypeError: the layer's kind is not supported; the message names the kind and lists the supported ones.

    Examples:
        >>> W = linear_map_of(nn.Conv2d(4, 6, kernel_size=3, groups=2)).weight
        >>> tuple(W.shape)  # d outputs, m = 4 / 2 channels x 3 x 3
        (6, 18)
    """
    try:
        return _adapted_map(module) if is_adapted(module) else _plain_map(module)
    except TypeError as error:
        raise TypeError(f"{error}. Supported: {SUPPORTED}.") from error


def _adapted_map(module: nn.Module) -> LinearMap:
    refuse_other_adapters(module)
    linear_map = _plain_map(base_layer(module))
    stored, matrix = linear_map.stored, linear_map.matrix
    linear_map.stored = lambda: merged_weight(module, matrix(stored()))
    linear_map.matrix = lambda weight: weight
    return linear_map


def _plain_map(module: nn.Module) -> LinearMap:
    layer: Any = module
    if is_quantized(module) and (isinstance(module, nn.Linear) or _is_quantized_row(module)):
        return RowMap(layer.out_features, layer.in_features, lambda: dequantized_weight(module))
    if isinstance(getattr(module, "weight", None), Tensor):
        _refuse_quantized(layer.weight)
    if isinstance(module, _CONVOLUTIONS):
        return ConvolutionMap(
            layer.out_channels,
            layer.in_channels,
            layer.kernel_size,
            lambda: _read_weight(module),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
        )
    if _is_conv1d(module):
        return RowMap(layer.nf, layer.nx, lambda: _read_weight(module), lambda stored: stored.t())
    if isinstance(module, nn.Linear):
        return RowMap(layer.out_features, layer.in_features, lambda: _read_weight(module))
    raise TypeError(f"is {with_article(type(module).__name__)}, which is no kind of layer that hf_fam supports")


def _is_conv1d(module: nn.Module) -> bool:
    """Return True for GPT-2's linear layer, which stores W transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def _is_quantized_row(module: nn.Module) -> bool:
    return is_quantized(module) and hasattr(module, "in_features") and hasattr(module, "out_features")


def _read_weight(module: Any) -> Tensor:
    """Return the weight that the last forward pass used."""
    if not parametrize.is_parametrized(module, "weight"):
        return module.weight
    parametrization = module.parametrizations["weight"]
    modes = [(part, part.training) for part in parametrization.modules()]
    parametrization.eval()  # in training mode, reading a spectral normalization would change it
    try:
        return parametrization()
    finally:
        for part, training in modes:
            part.training = training


def _refuse_quantized(weight: Tensor) -> None:
    """Refuse weights that are stored as codes in place of numbers.

    Raises:
        TypeError: the weight is quantized.
    """
    package = type(weight).__module__.split(".")[0]
    if not weight.is_floating_point() or weight.itemsize < 2 or package == "torchao":
        kind = f"{package}'s {type(weight).__name__}" if package == "torchao" else f"{weight.dtype}"
        raise TypeError(f"has a quantized weight ({kind}) that hf_fam cannot read")
