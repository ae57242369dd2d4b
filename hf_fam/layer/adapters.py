"""PEFT's wrappers, recognized without importing PEFT: which module is called, and which weight it applies."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import wide
from ..calculus.torch_internals import Convolution

# What get_peft_model puts before the names of a model's modules.
PREFIX = "base_model.model."


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is a layer with an adapter around it, of any kind that PEFT has."""
    return _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer")


def is_module_copy(module: nn.Module) -> bool:
    """Whether the module stands for a trained copy of another (PEFT's ``modules_to_save``)."""
    return _is_a(module, "peft.utils.other", "ModulesToSaveWrapper")


def base_layer(module: nn.Module) -> nn.Module:
    """The layer inside an adapter, or the layer itself."""
    adapted: Any = module
    return adapted.get_base_layer() if is_adapted(module) else module


def active_module(module: nn.Module) -> nn.Module:
    """The module that is called when this one is: the trained copy behind ``modules_to_save``, else itself."""
    if not is_module_copy(module):
        return module
    wrapper: Any = module
    active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    return wrapper.original_module if wrapper.disable_adapters or not active else wrapper.modules_to_save[active[0]]


def refuse_other_adapters(module: nn.Module) -> None:
    """Refuse an adapter whose weight cannot be merged into the layer's own.

    Args:
        module: see `is_adapted`.

    Raises:
        TypeError: names the adapter, and why.
    """
    layer: Any = module
    kind = f"{type(module).__module__.removeprefix('peft.tuners.').split('.')[0]}.{type(module).__name__}"
    of_parameters = _is_a(module, "peft.tuners.lora.layer", "ParamWrapper")
    if of_parameters or not _is_a(module, "peft.tuners.lora.layer", "LoraLayer"):
        raise TypeError(
            f"has an adapter of PEFT, {kind}, whose weight hf_fam cannot merge: LoRA and DoRA are supported"
        )
    base: Any = base_layer(module)
    if isinstance(base, Convolution) and (base.groups > 1 or set(base.dilation) != {1} or base.padding_mode != "zeros"):
        raise TypeError(
            "has LoRA on a convolution with groups, dilation or a padding mode, which PEFT's adapter does not share, "
            "so that the two are not one convolution"
        )
    for name in _active(layer):
        variant = type(layer.lora_variant[name]).__name__ if name in layer.lora_variant else None
        if variant not in (None, "DoraLinearVariant"):
            raise TypeError(f"has a variant of LoRA, {variant}, whose weight hf_fam cannot merge: plain LoRA works")
        if variant and len(_active(layer)) > 1:
            raise TypeError("has DoRA and a second active adapter, which do not make one weight: activate one of them")


def merged_weight(module: nn.Module, base: Tensor) -> Tensor:
    """W of a layer with LoRA: ``W_0 + sum scaling B A`` over its active adapters, without their dropout.

    With DoRA, row s is multiplied by ``magnitude_s / ||w_s||``, the norm held constant (Liu et al. 2024,
    arXiv 2402.09353, section 4.3).

    Args:
        module: a layer that `refuse_other_adapters` accepts.
        base: W_0, shape ``(d, m)``.
    """
    layer: Any = module
    if layer.disable_adapters or layer.merged:
        return base
    weight = base.to(wide(base.dtype))
    with torch.autocast(weight.device.type, enabled=False):
        for name in _active(layer):
            a, b = (factor[name].weight.to(weight.dtype).flatten(1) for factor in (layer.lora_A, layer.lora_B))
            weight = weight + layer.scaling[name] * (b @ a)
            if name in layer.lora_variant:
                magnitude = layer.lora_magnitude_vector[name].weight.to(weight.dtype)
                weight = (magnitude / torch.linalg.vector_norm(weight.detach(), dim=1)).unsqueeze(1) * weight
    return weight


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_a(module: nn.Module, where: str, name: str) -> bool:
    kind = getattr(sys.modules.get(where), name, None)
    return kind is not None and isinstance(module, kind)
