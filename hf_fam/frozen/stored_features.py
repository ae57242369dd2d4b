"""Features of a data set, computed once and kept on disk under a hash of model and data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..inputs.kinds import require_instance
from ..inputs.numbers import require_whole
from .content_hash import content_hash, dataset_hash, weights_hash
from .frozen_backbone import FrozenBackbone

# Raise it when the features of the same model and data change.
FORMAT = 1
IGNORED = -100


class FeatureDataset(Dataset):  # type: ignore[type-arg]
    """Items of stored features and labels.

    Args:
        features: shape ``(rows, features)``; an item is one row, or several for a head that reads every token.
        labels: shape ``(rows,)`` or ``(items,)``; None if there are none.
        lengths: number of rows of each item, shape ``(items,)``.
        is_by_token: True if the head reads every token.
    """

    def __init__(self, features: Tensor, labels: Tensor | None, lengths: Tensor, is_by_token: bool) -> None:
        self.features, self.labels, self.lengths, self.is_by_token = features, labels, lengths, is_by_token
        ends = lengths.cumsum(0).tolist()
        self._ranges = [*zip([0, *ends[:-1]], ends, strict=True)] if ends else []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not self.is_by_token:
            item = {"features": self.features[index]}
            return item if self.labels is None else {**item, "labels": self.labels[index]}
        start, end = self._ranges[index]
        item = {"features": self.features[start:end]}
        return item if self.labels is None else {**item, "labels": self.labels[start:end]}

    def select(self, rows: Sequence[int]) -> FeatureDataset:
        """Return the data set of some items, in this order."""
        if not self.is_by_token:
            at = torch.as_tensor(rows, dtype=torch.int64)
            labels = None if self.labels is None else self.labels[at]
            return FeatureDataset(self.features[at], labels, self.lengths[at], False)
        parts = [self[int(row)] for row in rows]
        labels = None if self.labels is None else torch.cat([part["labels"] for part in parts])
        lengths = torch.tensor([len(part["features"]) for part in parts])
        return FeatureDataset(torch.cat([part["features"] for part in parts]), labels, lengths, True)


def collate_features(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a batch of items of a `FeatureDataset`; shorter items are padded with zeros and without labels."""
    is_by_token = items[0]["features"].dim() == 2
    if not is_by_token:
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {"features": pad([item["features"] for item in items], batch_first=True)}
    if "labels" in items[0]:
        batch["labels"] = pad([item["labels"] for item in items], batch_first=True, padding_value=IGNORED)
    return batch


def feature_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder of stored features: within ``cache_dir``, or beside the Hub's cache."""
    return Path(cache_dir or Path(HF_HOME, "hf_fam"), "features")


def stored_features(
    backbone: FrozenBackbone,
    model: nn.Module,
    dataset: Any,
    collator: Callable[[list[Any]], Any],
    *,
    settings: Any,
    folder: Path,
    batch_size: int = 64,
) -> FeatureDataset:
    """Return the features of a data set, from disk if they were computed before.

    Args:
        backbone: knows where the features are.
        model: the model, after `freeze_backbone`.
        dataset: items for the collator.
        collator: makes a batch of items.
        settings: what else the features depend on, such as the settings of an image processor.
        folder: folder of stored features.
        batch_size: items in a forward pass.

    Raises:
        ValueError: ``batch_size`` is out of range.
        TypeError: ``folder`` is no path.
    """
    batch_size = require_whole("batch_size", batch_size)
    require_instance("folder", folder, Path, "a path")
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    key = content_hash(
        FORMAT,
        type(model).__name__,
        backbone.first_layer,
        weights_hash([*frozen, *model.named_buffers()]),
        settings,
        dataset_hash(dataset),
    )
    file = folder / f"{key}.safetensors"
    if not file.is_file():
        write_tensors(file, compute_features(backbone, model, dataset, collator, batch_size))
    tensors = load_file(file)
    is_by_token = bool(tensors["is_by_token"])
    return FeatureDataset(tensors["features"], tensors.get("labels"), tensors["lengths"], is_by_token)


def compute_features(
    backbone: FrozenBackbone, model: nn.Module, dataset: Any, collator: Callable[[list[Any]], Any], batch_size: int
) -> dict[str, Tensor]:
    """Return the tensors of a `FeatureDataset`, by name."""
    device = next(model.parameters()).device
    rows: list[Tensor | None] = [None] * len(dataset)
    labels: list[Tensor | None] = [None] * len(dataset)
    order = by_length(dataset)
    is_by_token = False
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = collator([dataset[k] for k in numbers])
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        features = backbone.features(model, batch).cpu()
        is_by_token = features.dim() == 3
        mask = batch["attention_mask"].bool().cpu() if is_by_token and "attention_mask" in batch else None
        for place, number in enumerate(numbers):
            keep = slice(None) if mask is None else mask[place]
            rows[number] = features[place][keep] if is_by_token else features[place : place + 1]
            if batch.get("labels") is not None:
                label = batch["labels"][place].cpu()
                labels[number] = label[keep] if is_by_token else label[None]
    lengths = torch.tensor([len(part) for part in rows if part is not None])
    tensors = {
        "features": torch.cat([part for part in rows if part is not None]),
        "lengths": lengths,
        "is_by_token": torch.tensor(is_by_token),
    }
    if all(label is not None for label in labels):
        tensors["labels"] = torch.cat([label for label in labels if label is not None])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def by_length(dataset: Any) -> list[int]:
    """Return the numbers of the items, shorter texts first, so that batches need little padding."""
    count = len(dataset)
    if count and isinstance(dataset[0], dict) and "input_ids" in dataset[0]:
        return sorted(range(count), key=lambda k: len(dataset[k]["input_ids"]))
    return [*range(count)]


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file as a whole: it is either missing or complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary)
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)
