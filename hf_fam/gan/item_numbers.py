"""Random numbers of a batch that are a function of numbers alone: the seed, what they are for, the step, the item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calculus.signs import key, subkeys


class ItemDraws:
    """Uniform and normal numbers for the items of a batch; an item gets the same ones in whatever part it is computed.

    Each call draws new numbers, so the order of calls matters, as with a ``torch.Generator``. The numbers come from
    the counter-based generator of `hf_fam.calculus.signs`; there is no state to save.

    Args:
        numbers: what the draws depend on: seed, purpose, step.
        first_item: number of the batch's first item in the whole step.
        items: how many there are.

    Examples:
        >>> whole = ItemDraws((0, "latents", 3), 0, 4).uniform((4, 2))
        >>> part = ItemDraws((0, "latents", 3), 2, 2).uniform((2, 2))
        >>> bool((whole[2:] == part).all())
        True
    """

    def __init__(self, numbers: Sequence[int | str], first_item: int, items: int) -> None:
        self._numbers = tuple(numbers)
        self._items = torch.arange(first_item, first_item + items)
        self._calls = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """U(0, 1), never 0 or 1, in float64 on the CPU.

        Args:
            shape: of the batch, its first dimension the items.

        Raises:
            ValueError: the first dimension is not the number of items.
        """
        count, *rest = shape
        if count != len(self._items):
            raise ValueError(f"draws of shape {tuple(shape)} for {len(self._items)} items: give one row an item.")
        calls = key((*self._numbers, self._calls), torch.device("cpu"))
        self._calls += 1
        positions = torch.arange(torch.Size(rest).numel())
        bits = subkeys(subkeys(calls, self._items)[:, None], positions)
        # The upper 53 bits, and half a unit more.
        return (((bits >> 11) & (2**53 - 1)).double() + 0.5).mul_(2.0**-53).reshape(shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, in float64 on the CPU.

        Args:
            shape: as for `uniform`.
        """
        return torch.special.ndtri(self.uniform(shape))
