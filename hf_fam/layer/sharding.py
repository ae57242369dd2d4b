"""Recognize models whose weights torch splits between processes."""

from __future__ import annotations

import sys

from torch import nn


def is_sharded(model: nn.Module) -> bool:
    """Return True if FSDP or DeepSpeed ZeRO stage 3 was applied to a model or a part of it.

    FSDP is ``fully_shard`` or ``FullyShardedDataParallel``.
    """
    return (
        _contains(model, "FSDPModule")
        or _contains(model, "FullyShardedDataParallel")
        or any(_is_partitioned(weight) for weight in model.parameters())
    )


def refuse_older_fsdp(model: nn.Module) -> None:
    """Refuse the older FSDP.

    Raises:
        ValueError: a part of the model is in ``FullyShardedDataParallel``.
    """
    if _contains(model, "FullyShardedDataParallel"):
        raise ValueError(
            "the model is in FullyShardedDataParallel, the older FSDP, which is not supported: use version 2 "
            "(`accelerate launch --fsdp_version 2`), which is torch.distributed.fsdp.fully_shard."
        )


def refuse_split_weight(name: str, layer: nn.Module) -> None:
    """Refuse a layer of whose weight this process has only a part, in the layer's forward pass.

    FSDP and DeepSpeed ZeRO stage 3 gather a weight for its forward pass, tensor parallelism does not. Both gather the
    parts of a layer with an adapter on their own.

    Args:
        name: name of the layer, for the message.
        layer: the layer, with its adapters.

    Raises:
        ValueError: a weight is split between processes.
    """
    split_class = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    if any(isinstance(w, split_class) or (_is_partitioned(w) and w.numel() == 0) for w in layer.parameters()):
        raise ValueError(
            f"the weight of layer '{name}' is split between processes in its forward pass, which is not supported. "
            "Causes are tensor parallelism, and an adapter that FSDP or DeepSpeed shards on its own. Load the model "
            "without tp_plan, or choose a layer without an adapter."
        )


def _is_partitioned(weight: nn.Parameter) -> bool:
    """Return True if DeepSpeed ZeRO stage 3 manages a weight, which is empty while it is not gathered."""
    return hasattr(weight, "ds_id")


def _contains(model: nn.Module, class_name: str) -> bool:
    """Return True if a module is of the FSDP class with this name.

    The class is looked up by name, because older versions of torch have no FSDPModule.
    """
    fsdp_class = getattr(sys.modules.get("torch.distributed.fsdp"), class_name, None)
    return fsdp_class is not None and any(isinstance(module, fsdp_class) for module in model.modules())
