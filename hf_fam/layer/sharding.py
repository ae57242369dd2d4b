"""Whether torch's FSDP has sharded a model, and what then still works."""

from __future__ import annotations

import sys

from torch import nn

from .feature_layer import FeatureLayer


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP was applied to a model or a part of it (``fully_shard`` or ``FullyShardedDataParallel``)."""
    return _contains(model, "FSDPModule") or _contains(model, "FullyShardedDataParallel")


def refuse_what_sharding_breaks(model: nn.Module, layer: FeatureLayer, estimator: str, *, first_order: bool) -> None:
    """Refuse an estimator on a sharded model, unless it takes the loss's own backward pass alone.

    Args:
        model: the sharded model.
        layer: its feature layer.
        estimator: the estimator's name, for the message.
        first_order: whether it does without derivatives of its own.

    Raises:
        ValueError: with the remedy.
    """
    if _contains(model, "FullyShardedDataParallel"):
        raise ValueError(
            "the model is in FullyShardedDataParallel, the older FSDP, which nobody has tried: use "
            "torch.distributed.fsdp.fully_shard (docs/distributed.md)."
        )
    if not first_order:
        raise ValueError(
            f'the model is sharded by FSDP, and estimator="{estimator}" would differentiate the loss before its '
            "backward pass, which FSDP takes for the backward pass itself: use hf_fam.attach for the head, "
            'or estimator="perturbation" for any layer (docs/distributed.md).'
        )
    if _contains(layer.module, "FSDPModule"):
        raise ValueError(
            f"layer '{layer.name}' is sharded on its own, so that its weight is gone when its forward pass is over: "
            "apply fully_shard to the block around it, or to the whole model, instead."
        )


def _contains(model: nn.Module, name: str) -> bool:
    """By the class's name in torch's module: what was not imported was not applied, and FSDPModule is young."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), name, None)
    return kind is not None and any(isinstance(module, kind) for module in model.modules())
