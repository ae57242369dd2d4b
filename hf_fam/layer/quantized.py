"""Read quantized weights as floating-point numbers."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn


def is_quantized(module: nn.Module) -> bool:
    """Return True for a linear layer whose weight has to be dequantized first."""
    return _is_bitsandbytes(module) or hasattr(module, "dequantize")


def dequantized_weight(module: nn.Module) -> Tensor:
    """Return W, shape ``(d, m)``.

    W is constant, unless the layer's own ``dequantize`` is differentiable.

    Args:
        module: a layer of bitsandbytes (8 or 4 bits), or one with a method ``dequantize`` that returns W.
    """
    layer: Any = module
    if not _is_bitsandbytes(module):
        return layer.dequantize()
    functional: Any = importlib.import_module("bitsandbytes.functional")
    weight = layer.weight
    if type(weight).__name__ == "Params4bit" and weight.quant_state is not None:
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    if weight.is_floating_point():  # has_fp16_weights, or not quantized yet
        return weight
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB  # the first call moves the scales
    return functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device))


def _is_bitsandbytes(module: nn.Module) -> bool:
    return type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")
