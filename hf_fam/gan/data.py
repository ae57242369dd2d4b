"""Batches of real samples from data sets of any common form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .class_labels import LABELS, collate_labels

SAMPLES = "samples"
# Names of the field that holds the sample; the first existing one is used.
_COLUMNS = (SAMPLES, "pixel_values", "image", "images", "x", "data")


@dataclass(frozen=True)
class RealBatch:
    """Real samples on the device of the networks.

    Args:
        samples: of shape (n, ...).
        labels: of shape (n,), int64; None for networks without labels.
    """

    samples: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)


def real_batch(batch: Any, num_classes: int | None, device: torch.device, dtype: torch.dtype) -> RealBatch:
    """Return what a data collator returned, on the device.

    Raises:
        ValueError: the samples are missing, or the labels where there are classes.
    """
    samples, labels = (batch.get(name) if isinstance(batch, Mapping) else None for name in (SAMPLES, LABELS))
    if not isinstance(samples, Tensor):
        raise ValueError(f"data_collator must return {{{SAMPLES!r}: tensor}}, the real samples of a batch.")
    samples = samples.to(device, dtype)
    if num_classes is None:
        return RealBatch(samples)
    if not isinstance(labels, Tensor) or labels.shape != (len(samples),) or labels.is_floating_point():
        raise ValueError(
            f"data_collator must return {{{SAMPLES!r}: tensor, {LABELS!r}: tensor}} with num_classes={num_classes}, "
            "with a whole number as the label of each sample."
        )
    return RealBatch(samples, labels.to(device, torch.int64))


def collate_samples(items: Sequence[Any], num_classes: int | None = None) -> dict[str, Tensor]:
    """Stack the samples of some items, and drop all other fields but the label.

    Args:
        items: tensors or arrays; tuples whose first entry is one, such as (image, label); or mappings with a tensor or
            an array. Its field is ``samples``, ``pixel_values``, ``image``, ``images``, ``x`` or ``data``, or the only
            one.
        num_classes: number of classes, for conditional networks. The label is the second entry of a tuple, or the
            field ``labels`` or ``label``. None: labels are dropped, too.

    Returns:
        ``samples``, of shape (n, ...), floating-point, and with classes ``labels``, of shape (n,), int64.

    Raises:
        ValueError: an item has no sample, or the sample is not floating-point; or the label is missing or out of range.

    Examples:
        >>> collate_samples([(torch.zeros(2), 1), (torch.ones(2), 0)])
        {'samples': tensor([[0., 0.],
                [1., 1.]])}
    """
    samples = [_sample(item) for item in items]
    try:
        batch = torch.stack(samples)
    except RuntimeError:
        shapes = {tuple(sample.shape) for sample in samples}
        if len(shapes) == 1:
            raise
        raise ValueError(
            f"train_dataset: samples of different shapes, {sorted(shapes)}: give all samples one shape."
        ) from None
    if not batch.is_floating_point():
        raise ValueError(
            f"train_dataset: samples of type {batch.dtype}: give floating-point ones, in the range of the generator's "
            "output (for images with tanh: x.float() / 127.5 - 1)."
        )
    return {SAMPLES: batch} if num_classes is None else {SAMPLES: batch, LABELS: collate_labels(items, num_classes)}


def _sample(item: Any) -> Tensor:
    if isinstance(item, Tensor) and item.ndim:
        return item
    if isinstance(item, Mapping):
        names = [name for name in _COLUMNS if name in item] or (list(item) if len(item) == 1 else [])
        if not names:
            raise ValueError(
                f"train_dataset: items have the fields {', '.join(map(repr, item))}, and none of them is called "
                f"{', '.join(map(repr, _COLUMNS))}. Rename the field of the sample, or give a data_collator that "
                f"returns {{{SAMPLES!r}: tensor}}."
            )
        item = item[names[0]]
    elif isinstance(item, (tuple, list)) and item and isinstance(item[0], (Tensor, np.ndarray)):
        item = item[0]
    try:
        sample = torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"train_dataset: an item of type {type(item).__name__} is no tensor ({error}). Transform images to "
            "tensors in the data set, or give a data_collator that returns "
            f"{{{SAMPLES!r}: tensor}}."
        ) from None
    if sample.ndim == 0:
        raise ValueError("train_dataset: samples are single numbers: give each as a tensor of shape (1,).")
    return sample
