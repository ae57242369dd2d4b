"""Rows of a data set, of whatever class it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Subset


def select(dataset: Any, rows: Sequence[int] | Any) -> Any:
    """Return some rows of a data set, in this order.

    Examples:
        >>> select(["a", "b", "c"], [2, 0])
        ['c', 'a']
    """
    if hasattr(dataset, "select"):
        return dataset.select(rows)
    if isinstance(dataset, list):
        return [dataset[k] for k in rows]
    return Subset(dataset, [int(k) for k in rows])
