"""Labels of samples, for conditional networks."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..inputs.text import quote

LABELS = "labels"
# Names of the field that holds the label; the first existing one is used.
_COLUMNS = (LABELS, "label")


def collate_labels(items: Sequence[Any], num_classes: int, data: str = "train_dataset") -> Tensor:
    """Return the labels of some items.

    Args:
        items: pairs of a sample and a label, or mappings with a field ``labels`` or ``label``.
        num_classes: number of classes.
        data: name of the data set, for messages.

    Returns:
        Of shape (n,), int64.

    Raises:
        ValueError: an item has no label, or the label is not a whole number from 0 to num_classes - 1.

    Examples:
        >>> collate_labels([(torch.zeros(2), 1), (torch.ones(2), 0)], num_classes=2)
        tensor([1, 0])
    """
    return _whole_numbers((_label(item, num_classes, data) for item in items), num_classes, data)


def check_labels(dataset: Any, num_classes: int, data: str) -> None:
    """Refuse labels that do not fit the number of classes.

    All labels are read if that is possible without the samples: of lists, of a ``TensorDataset`` and of a
    ``datasets.Dataset``. The collator checks others, batch by batch.

    Args:
        dataset: real samples with labels, or several such data sets by name.
        num_classes: number of classes.
        data: name of the data set, for messages.

    Raises:
        ValueError: a label is missing or out of range, or a class of train_dataset has no sample.
    """
    if isinstance(dataset, Mapping):
        for part in dataset.values():
            check_labels(part, num_classes, data)
    labels = _all_labels(dataset, num_classes, data)
    if labels is None or data != "train_dataset":
        return
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            f"{data}: no sample has label {', '.join(map(str, missing[:5]))}{', ...' if len(missing) > 5 else ''}, but "
            f"num_classes={num_classes}: give num_classes={num_classes - len(missing)} and labels from 0 to "
            f"{num_classes - len(missing) - 1}."
        )


def requested_labels(labels: Any, count: int, num_classes: int | None) -> Tensor | None:
    """Return the labels of samples that are to be generated.

    Args:
        labels: one class for all samples, a label for each, or None for all classes in turn.
        count: number of samples.
        num_classes: number of classes; None: networks without labels.

    Returns:
        Of shape (count,), int64; None for networks without labels.

    Raises:
        ValueError: the labels do not fit.

    Examples:
        >>> requested_labels(None, 5, num_classes=3)
        tensor([0, 1, 2, 0, 1])
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("labels: the networks were trained without num_classes: leave labels out.")
        return None
    if labels is None:
        return torch.arange(count) % num_classes
    values = labels.tolist() if isinstance(labels, Tensor) and labels.ndim else labels
    is_sequence = isinstance(values, Iterable) and not isinstance(values, (str, Tensor))
    chosen = _whole_numbers(values if is_sequence else [values], num_classes, "labels")
    if len(chosen) != count and is_sequence:
        raise ValueError(f"labels: {len(chosen)} labels for {count} samples: give one for each, or one for all.")
    return chosen.expand(count)


def _all_labels(dataset: Any, num_classes: int, data: str) -> Tensor | None:
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list) and hasattr(dataset, "with_format") and hasattr(dataset, "__len__"):
        name = next((name for name in _COLUMNS if name in names), None)
        return None if name is None else _whole_numbers(dataset.with_format(None)[name], num_classes, data)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return _whole_numbers(dataset.tensors[1].tolist(), num_classes, data)
    return collate_labels(dataset, num_classes, data) if isinstance(dataset, (list, tuple)) else None


def _label(item: Any, num_classes: int, data: str) -> Any:
    if isinstance(item, Mapping):
        name = next((name for name in _COLUMNS if name in item), None)
        if name is not None:
            return item[name]
        what = f"items with the fields {', '.join(map(repr, item))} have none called 'labels' or 'label'"
    elif isinstance(item, (tuple, list)) and len(item) > 1:
        return item[1]
    else:
        what = f"an item of type {type(item).__name__} has no label"
    raise ValueError(
        f"{data}: {what}, and num_classes={num_classes} needs one: give pairs (sample, label) or a field 'labels', or "
        "leave num_classes out."
    )


def _whole_numbers(values: Iterable[Any], num_classes: int, data: str) -> Tensor:
    """Return labels as a tensor, or refuse one of them."""
    labels = []
    for value in values:
        try:
            labels.append(operator.index(value))
        except (TypeError, ValueError, RuntimeError):  # of any class, tensors among them
            labels.append(-1)
        if not 0 <= labels[-1] < num_classes:
            raise ValueError(
                f"{data}: label {quote(value)} with num_classes={num_classes}: give whole numbers from 0 to "
                f"{num_classes - 1}, or another num_classes."
            )
    return torch.tensor(labels, dtype=torch.int64)
