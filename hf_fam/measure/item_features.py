"""The features that enter a layer and the label, for every item of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layer.feature_layer import FeatureLayer
from .data import LABELS, Batches, to_device
from .forward import CapturingForward, LossFunction, frozen_for_evaluation


@dataclass(frozen=True)
class ItemFeatures:
    """Features and labels of the items of a data set.

    Attributes:
        layer: dotted name.
        features: one row for each item, in float64, shape ``(items, m)``.
        labels: one row for each item, shape ``(items, ...)``; None if the batches contain none.
    """

    layer: str
    features: Tensor
    labels: Tensor | None


def item_features(
    model: nn.Module,
    data: Any,
    layer: str | nn.Module,
    *,
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    loss_fn: LossFunction | None,
    seed: int,
) -> ItemFeatures:
    """Return what enters a layer, and the labels.

    If the layer has several rows for an item (tokens, positions), their mean is taken. Padding is excluded if the batch
    has an ``attention_mask`` of the rows' shape. In a batch that is a tuple, the last tensor is the labels.

    Args:
        model: the model; it is left as it was.
        data: as for `measure_relative_flatness`.
        layer: the feature layer.
        batch_size: items in a batch, without a loader.
        collate_fn: makes a batch of items, without a loader.
        loss_fn: runs the model; by default ``model(**batch)``.
        seed: seed of the order of a loader.

    Raises:
        ValueError: the features are not finite.
    """
    batches = Batches(data, batch_size, collate_fn, seed=seed)
    feature_layer = FeatureLayer(model, layer)
    rows, labels = [], []
    with frozen_for_evaluation(model) as frozen, CapturingForward(frozen, [feature_layer], loss_fn) as forward:
        device = next(frozen.parameters()).device
        for _, batch in batches.of_this_process():
            _, (captures,) = forward(to_device(batch, device))
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            calls = [feature_layer.linear_map.feature_rows(c.features).detach().double().cpu() for c in captures]
            rows.append(torch.stack([_mean_of_rows(r, mask) for r in calls]).mean(0))
            labels.append(_labels(batch))
    features = torch.cat(rows)
    if not bool(features.isfinite().all()):
        raise ValueError(f"the features of layer '{feature_layer.name}' contain NaN or infinity.")
    known = [x for x in labels if x is not None]
    return ItemFeatures(feature_layer.name, features, torch.cat(known) if len(known) == len(labels) else None)


def _labels(batch: Any) -> Tensor | None:
    """Return the labels of a batch, on the CPU."""
    if isinstance(batch, Mapping):
        values = [batch.get(name) for name in LABELS]
    else:
        values = list(batch)[:0:-1] if isinstance(batch, (tuple, list)) else []
    return next((value.detach().cpu() for value in values if isinstance(value, Tensor)), None)


def _mean_of_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return one vector for each item, shape ``(items, m)``."""
    if rows.dim() > 2 and mask is not None and mask.shape == rows.shape[:-1]:
        weights = mask.to(rows).unsqueeze(-1)
        return (weights * rows).sum(1) / weights.sum(1).clamp_min(1)
    return rows.flatten(1, -2).mean(1) if rows.dim() > 2 else rows
