"""The number of classes above which a head is large."""

from __future__ import annotations

# Above this many classes, a second-order pass over the logits is expensive. Item weights are then computed from the
# gradient, cross-entropy is recognized in the graph, and the term acts in the backward pass.
LARGE_VOCABULARY = 4096


def is_large(classes: int) -> bool:
    """Return True if a head with this many classes is large.

    Examples:
        >>> is_large(77), is_large(128_000)
        (False, True)
    """
    return classes > LARGE_VOCABULARY
