"""Names of the splits, and rows that are split off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def split_rows(
    count: int, fraction: float, seed: int, labels: Sequence[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that are kept and those that are split off, each in random order.

    With labels, every class gives the fraction of its rows, and keeps one at least.

    Args:
        count: number of rows.
        fraction: the fraction that is split off, rounded up.
        seed: seed of the random choice.
        labels: class of each row; None if the rows have none.

    Examples:
        >>> kept, taken = split_rows(10, 0.2, seed=0, labels=["a"] * 9 + ["b"])
        >>> len(kept), len(taken), 9 in kept
        (8, 2, True)
    """
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    size = math.ceil(count * fraction)
    if labels is None:
        return order[size:], order[:size]
    groups: dict[Any, list[int]] = {}
    for row in order.tolist():
        groups.setdefault(labels[row], []).append(row)
    taken = np.asarray(
        [row for group, part in zip(groups.values(), _parts(groups, size), strict=True) for row in group[:part]],
        dtype=np.int64,
    )
    is_taken = np.zeros(count, dtype=bool)
    is_taken[taken] = True
    return order[~is_taken[order]], order[is_taken[order]]


def _parts(groups: dict[Any, list[int]], size: int) -> list[int]:
    """Return how many rows each class gives: proportional, the largest remainders first."""
    counts = [len(group) for group in groups.values()]
    shares = [size * count / sum(counts) for count in counts]
    parts = [min(int(share), count - 1) for share, count in zip(shares, counts, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda k: parts[k] - shares[k])
    while sum(parts) < size:
        open_places = [k for k in by_remainder if parts[k] < counts[k] - 1]
        if not open_places:
            break
        for k in open_places[: size - sum(parts)]:
            parts[k] += 1
    return parts
