"""Hashes of what data sets and models contain, so that stored results are used for the same content only."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def content_hash(*parts: Any) -> str:
    """Return a hash of values: numbers, texts, tensors, containers of them, and data sets.

    Args:
        *parts: the values, in order.

    Returns:
        32 hexadecimal digits.

    Examples:
        >>> content_hash([1, "a"]) == content_hash((1, "a")) != content_hash((1, "b"))
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()[:32]


def dataset_hash(dataset: Any) -> str:
    """Return a hash of the rows of a data set, in order.

    A data set of `datasets` is read without its transform, so that random changes of images do not count.

    Args:
        dataset: a ``datasets.Dataset``, a list, or anything with a length and items.
    """
    digest = hashlib.sha256()
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):
        _update(digest, list(dataset.column_names))
        for table in dataset.with_format("arrow").iter(1000):
            _update(digest, table.to_pylist())
    else:
        for k in range(len(dataset)):
            _update(digest, dataset[k])
    return digest.hexdigest()[:32]


def weights_hash(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of named tensors, such as ``model.named_parameters()``."""
    return content_hash(sorted((name, tensor.detach()) for name, tensor in named_tensors))


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        is_bfloat = value.dtype == torch.bfloat16  # which numpy does not have
        value = (value.float() if is_bfloat else value).numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, dict):
        digest.update(f"dict{len(value)}".encode())
        for name in sorted(value, key=str):
            _update(digest, str(name))
            _update(digest, value[name])
    elif hasattr(value, "keys") and hasattr(value, "items"):  # a BatchEncoding
        _update(digest, dict(value.items()))
    elif isinstance(value, (list, tuple)):
        digest.update(f"list{len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, bytes):
        digest.update(value)
    elif value is None or isinstance(value, (str, int, float, bool)):
        digest.update(json.dumps(value).encode())
    else:
        digest.update(pickle.dumps(value))
    digest.update(b"\0")
