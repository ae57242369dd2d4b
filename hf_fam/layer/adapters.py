"""PEFT's wrappers, recognized without importing PEFT: which module is called, and which weight it applies."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import wide
from ..calculus.torch_internals import Convolution

# Prefix of module names in a model from get_peft_model.
PREFIX = "base_model.model."


def is_adapted(module: nn.Module) -> bool:
    """Return True if the module is a layer with a PEFT adapter of any kind."""
    return _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer")


def is_module_to_save(module: nn.Module) -> bool:
    """Return True for PEFT's wrapper around a copy in ``modules_to_save``."""
    return _is_a(module, "peft.utils.other", "ModulesToSaveWrapper")


def base_layer(module: nn.Module) -> nn.Module:
    """Return the layer inside an adapter, or the layer itself."""
    adapted: Any = module
    return adapted.get_base_layer() if is_adapted(module) else module


def active_module(module: nn.Module) -> nn.Module:
    """Return the module that runs when this one is called.

    It is the trained copy in ``modules_to_save``, the layer with ``trainable_token_indices``, else the module itself.
    """
    if _is_a(module, "peft.utils.other", "TrainableTokensWrapper"):
        tokens: Any = module
        layer: nn.Module = tokens.token_adapter
        return layer
    if not is_module_to_save(module):
        return module
    wrapper: Any = module
    active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    return wrapper.original_module if wrapper.disable_adapters or not active else wrapper.modules_to_save[active[0]]


def refuse_other_adapters(module: nn.Module) -> None:
    """Refuse an adapter whose weight cannot be merged into the layer's own.

    Args:
        module: see `is_adapted`.

    Raises:
        TypeError: the weight cannot be merged; the message names the adapter and the reason.
    """
    if _has_trained_rows(module):
        return
    layer: Any = module
    kind = f"{type(module).__module__.removeprefix('peft.tuners.').split('.')[0]}.{type(module).__name__}"
    of_parameters = _is_a(module, "peft.tuners.lora.layer", "ParamWrapper")
    if of_parameters or not _is_a(module, "peft.tuners.lora.layer", "LoraLayer"):
        raise TypeError(f"has a PEFT adapter of kind {kind}, whose weight hf_fam cannot merge: use LoRA or DoRA")
    base: Any = base_layer(module)
    if isinstance(base, Convolution) and (base.groups > 1 or set(base.dilation) != {1} or base.padding_mode != "zeros"):
        raise TypeError(
            "has LoRA on a convolution with groups, dilation or a padding mode. PEFT's adapter lacks these, so the two "
            "cannot be merged into one convolution"
        )
    for name in _active_adapters(layer):
        variant = type(layer.lora_variant[name]).__name__ if name in layer.lora_variant else None
        if variant not in (None, "DoraLinearVariant"):
            raise TypeError(f"has the LoRA variant {variant}, whose weight hf_fam cannot merge: use plain LoRA")
        if variant and len(_active_adapters(layer)) > 1:
            raise TypeError("has DoRA and a second active adapter, which hf_fam cannot merge: activate only one")


def merged_weight(module: nn.Module, base: Tensor) -> Tensor:
    """Return the weight W of a layer with LoRA, without dropout.

    ``W_0 + sum scaling B A`` over the active adapters.

    With DoRA, row s is multiplied by ``magnitude_s / ||w_s||``, the norm held constant (Liu et al. 2024,
    arXiv 2402.09353, section 4.3). With ``trainable_token_indices``, trained rows replace those of W_0.

    Args:
        module: a layer that `refuse_other_adapters` accepts.
        base: W_0, shape ``(d, m)``.
    """
    layer: Any = module
    if layer.disable_adapters or layer.merged:
        return base
    if _has_trained_rows(module):
        for name in layer.active_adapters:
            rows = torch.tensor(layer.token_indices[name], device=base.device)
            base = base.index_copy(0, rows, layer.trainable_tokens_delta[name].to(base))
        return base
    weight = base.to(wide(base.dtype))
    with torch.autocast(weight.device.type, enabled=False):
        for name in _active_adapters(layer):
            a, b = (factor[name].weight.to(weight.dtype).flatten(1) for factor in (layer.lora_A, layer.lora_B))
            weight = weight + layer.scaling[name] * (b @ a)
            if name in layer.lora_variant:
                magnitude = layer.lora_magnitude_vector[name].weight.to(weight.dtype)
                weight = (magnitude / torch.linalg.vector_norm(weight.detach(), dim=1)).unsqueeze(1) * weight
    return weight


def has_active_dropout(module: nn.Module) -> bool:
    """Return True if the adapter of a layer drops features at random now."""
    return is_adapted(module) and any(m.training and m.p > 0 for m in module.modules() if isinstance(m, nn.Dropout))


def _has_trained_rows(module: nn.Module) -> bool:
    """Return True for PEFT's ``trainable_token_indices`` on a head, which may be tied to the embedding."""
    return _is_a(module, "peft.tuners.trainable_tokens.layer", "TrainableTokensLayer")


def _active_adapters(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_a(module: nn.Module, module_name: str, class_name: str) -> bool:
    wanted_class = getattr(sys.modules.get(module_name), class_name, None)
    return wanted_class is not None and isinstance(module, wanted_class)
