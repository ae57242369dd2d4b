"""Random signs that are a function of numbers alone: the seed, the step, the item, the position in it, the feature.

This is a counter-based generator: it applies a 64-bit mixing function to one number after the other. The function is
the finalizer of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"). So an item gets
the same signs in every micro-batch, process, padding and device, and there is no state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Of splitmix64, as signed 64-bit integers; products wrap around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def key(numbers: Sequence[int | str], device: torch.device) -> Tensor:
    """Return a 64-bit key, shape ``()``, that is a function of the numbers."""
    digest = hashlib.blake2b(repr(tuple(numbers)).encode(), digest_size=8).digest()
    # torch.tensor would copy it from the host, which waits for the device.
    return torch.full((), int.from_bytes(digest, "little", signed=True), dtype=torch.int64, device=device)


def subkeys(keys: Tensor, numbers: Tensor) -> Tensor:
    """Return a separate key for every number.

    Args:
        keys: int64, any shape.
        numbers: int64, shape that broadcasts with ``keys``.
    """
    x = keys + _GOLDEN * (numbers + 1)
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def signs(keys: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` independent signs for every key.

    A smaller count gives the first of the same signs.

    Args:
        keys: int64, shape ``(...)``.
        count: number of signs.
        dtype: of the result.

    Returns:
        -1 and 1, shape ``(..., count)``.

    Examples:
        >>> import torch
        >>> one = key((0, 1), torch.device("cpu"))
        >>> signs(subkeys(one, torch.arange(2)), 4, torch.float32)
        tensor([[-1.,  1.,  1., -1.],
                [ 1.,  1., -1., -1.]])
    """
    blocks = torch.arange((count + 63) // 64, device=keys.device)
    octets = subkeys(keys.unsqueeze(-1), blocks).view(torch.uint8)
    masks = 1 << torch.arange(8, dtype=torch.uint8, device=keys.device)
    bits = (octets.unsqueeze(-1) & masks).ne(0).flatten(-2)[..., :count]
    return bits.to(dtype).mul_(2).sub_(1)


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)
