"""Random numbers of a batch that are a function of seed, purpose, step and item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calculus.signs import key, subkeys


class ItemRandomNumbers:
    """Uniform and normal random numbers for the items of a batch.

    An item gets the same numbers in every micro-batch and process.

    Each call returns new numbers, so the order of calls matters, as with a ``torch.Generator``. The numbers come from
    the counter-based generator of `hf_fam.calculus.signs`; there is no state to save.

    Args:
        numbers: seed, purpose and step, which the random numbers depend on.
        first_item: number of the batch's first item in the whole step.
        items: number of items.

    Examples:
        >>> whole = ItemRandomNumbers((0, "latents", 3), 0, 4).uniform((4, 2))
        >>> part = ItemRandomNumbers((0, "latents", 3), 2, 2).uniform((2, 2))
        >>> bool((whole[2:] == part).all())
        True
    """

    def __init__(self, numbers: Sequence[int | str], first_item: int, items: int) -> None:
        self._numbers = tuple(numbers)
        self._items: Any = np.arange(first_item, first_item + items)
        self._calls = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return numbers from U(0, 1), never 0 or 1, in float64 on the CPU.

        Args:
            shape: shape of the batch; its first dimension counts the items.

        Raises:
            ValueError: the first dimension is not the number of items.
        """
        count, *rest = shape
        if count != len(self._items):
            raise ValueError(f"shape={tuple(shape)} for {len(self._items)} items: give one row for each item.")
        # A critic step draws few numbers. For those, numpy is faster than torch.
        call_key: Any = key((*self._numbers, self._calls), torch.device("cpu")).reshape(1).numpy()
        self._calls += 1
        positions: Any = np.arange(torch.Size(rest).numel())
        bits: Any = subkeys(subkeys(call_key, self._items)[:, None], positions)
        # The upper 53 bits plus half a unit.
        return torch.from_numpy((((bits >> 11) & (2**53 - 1)) + 0.5) * 2.0**-53).reshape(tuple(shape))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers, in float64 on the CPU.

        Args:
            shape: as for `uniform`.
        """
        return torch.special.ndtri(self.uniform(shape))
