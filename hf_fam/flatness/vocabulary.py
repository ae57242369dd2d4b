"""From how many classes on a head is large."""

from __future__ import annotations

# Above this many classes a second-order pass over the logits is felt: item weights are read off the gradient instead, a
# loss whose graph shows cross-entropy is not differentiated twice to prove it, and the term acts in the backward pass.
LARGE_VOCABULARY = 4096


def is_large(classes: int) -> bool:
    """Return whether a head of so many classes is large.

    Examples:
        >>> is_large(77), is_large(128_000)
        (False, True)
    """
    return classes > LARGE_VOCABULARY
