"""Detect models that torch's FSDP has sharded, and refuse estimators that do not work there."""

from __future__ import annotations

import sys

from torch import nn

from .feature_layer import FeatureLayer


def is_sharded(model: nn.Module) -> bool:
    """Return True if FSDP was applied to a model or a part of it.

    FSDP is ``fully_shard`` or ``FullyShardedDataParallel``.
    """
    return _contains(model, "FSDPModule") or _contains(model, "FullyShardedDataParallel")


def refuse_unsupported_sharding(model: nn.Module, layer: FeatureLayer, estimator: str, *, first_order: bool) -> None:
    """Refuse estimators and layers that do not work in a sharded model.

    Only estimators that take no derivatives before the loss's own backward pass work.

    Args:
        model: the sharded model.
        layer: its feature layer.
        estimator: the estimator's name, for the message.
        first_order: whether it needs no derivatives besides those of the loss's own backward pass.

    Raises:
        ValueError: the estimator or the layer does not work; the message says what to do.
    """
    if _contains(model, "FullyShardedDataParallel"):
        raise ValueError(
            "the model is in FullyShardedDataParallel, the older FSDP, which is not supported: use "
            "torch.distributed.fsdp.fully_shard (docs/distributed.md)."
        )
    if not first_order:
        raise ValueError(
            f'the model is sharded by FSDP, where estimator="{estimator}" does not work, because it differentiates '
            "the loss before the backward pass: use hf_fam.attach for the head, "
            'or estimator="perturbation" for any layer (docs/distributed.md).'
        )
    if _contains(layer.module, "FSDPModule"):
        raise ValueError(
            f"layer '{layer.name}' is sharded on its own, so its weight is freed after its forward pass: apply "
            "fully_shard to the block around it or to the whole model."
        )


def _contains(model: nn.Module, class_name: str) -> bool:
    """Return True if a module is of the FSDP class with this name.

    The class is looked up by name, because older versions of torch have no FSDPModule.
    """
    fsdp_class = getattr(sys.modules.get("torch.distributed.fsdp"), class_name, None)
    return fsdp_class is not None and any(isinstance(module, fsdp_class) for module in model.modules())
