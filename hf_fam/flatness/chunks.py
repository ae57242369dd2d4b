"""Rows of the logits in chunks, so that temporaries of their size need little memory.

At most a quarter of the logits exists in a temporary at a time, and never more than ``CHUNK_ELEMENTS`` entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Largest number of entries of a temporary. Two or three exist at a time (32 MB each in float32). With smaller chunks,
# reading and writing the gradient of W once for every chunk would dominate the time.
CHUNK_ELEMENTS = 2**23

# Up to this many logits, no chunks are used: for a small head, overhead dominates.
MAX_UNCHUNKED = 2**20


def needs_chunks(logits: Tensor) -> bool:
    """Return True if there are too many logits to compute with all of them at once."""
    return logits.numel() > MAX_UNCHUNKED


def rows_with_weight(item_weights: Tensor) -> Tensor | None:
    """Return the numbers of the rows whose weight is not 0, or None to use all rows.

    Only a CPU skips rows. On other devices the host would have to wait for their number.
    """
    if item_weights.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return item_weights.nonzero().squeeze(1)


def row_chunks(rows: Tensor | None, count: int, classes: int) -> Iterator[Tensor | slice]:
    """Yield chunks of row numbers, or slices if all rows are used.

    A chunk has at most ``CHUNK_ELEMENTS`` logits, and at most a quarter of all logits unless they are few.

    Args:
        rows: numbers of the rows to use, or None for all.
        count: N, the total number of rows.
        classes: C.

    Examples:
        >>> import torch
        >>> list(row_chunks(torch.tensor([1, 3]), 4, 5)), list(row_chunks(None, 9, 2**20))
        ([tensor([1, 3])], [slice(0, 2, None), ..., slice(8, 9, None)])
    """
    # With four chunks or more, the temporaries and the gradient of the logits need less memory than the loss itself.
    size = max(1, min(CHUNK_ELEMENTS, max(MAX_UNCHUNKED, count * classes // 4)) // classes)
    if rows is None or rows.numel() == count:
        yield from (slice(start, min(start + size, count)) for start in range(0, count, size))
    elif rows.numel():
        yield from rows.split(size)


def select_rows(t: Tensor, rows: Tensor | slice) -> Tensor:
    """Return rows of a tensor, as a view if they are a slice."""
    return t[rows] if isinstance(rows, slice) else t.index_select(0, rows)


def weight_chunks(rows: Tensor) -> Sequence[Tensor]:
    """Return the rows of a weight, or of a sketch of it, in chunks."""
    return rows.split(max(1, CHUNK_ELEMENTS // max(1, rows.shape[1])))
