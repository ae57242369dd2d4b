"""What is drawn at random for a large vocabulary: signs that sketch the weight, and the tokens that are looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.signs import key, signs, subkeys
from .batch import Seeds


@dataclass(frozen=True)
class HeadSampling:
    """Row probes and token sampling; as it stands, neither.

    Attributes:
        probes: P, the number of row probes; 0 for the exact form.
        token_fraction: part of the rows with a label that is looked at, above 0 and at most 1.
    """

    probes: int = 0
    token_fraction: float = 1.0

    def draw(
        self, shape: torch.Size, in_features: int, device: torch.device, seeds: Seeds
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the seeds say: signs R, shape ``(m, P)``, alike in a whole step, and a key for every row of z.

        Args:
            shape: of z, ``(..., C)``.
            in_features: m.
            device: of the result.
            seeds: where both come from.

        Returns:
            Either of them is None where it is not needed. Which rows are chosen by their keys depends on how the batch
            of a step is cut: of every micro-batch it is the same part.
        """
        signs_of_w = keys = None
        if self.probes:
            row_of_w = subkeys(key((*seeds.numbers, "R"), device), torch.arange(in_features, device=device))
            signs_of_w = signs(row_of_w, self.probes, torch.int8)
        if self.token_fraction != 1:
            keys = seeds.of_rows(shape[:-1].numel(), shape[0], ("rows",), device).flatten()
        return signs_of_w, keys

    def draw_freely(self, rows: int, in_features: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """The same from torch's random state, where code is compiled and nobody numbers the steps."""
        signs_of_w = keys = None
        if self.probes:
            signs_of_w = torch.randint(0, 2, (in_features, self.probes), device=device, dtype=torch.int8) * 2 - 1
        if self.token_fraction != 1:
            keys = torch.rand(rows, device=device)
        return signs_of_w, keys


def thin(item_weights: Tensor, keys: Tensor | None, fraction: float) -> Tensor:
    """Item weights with those of all but a random part of the rows set to 0, and the others scaled up.

    Only rows with a weight other than 0 are drawn, at least one of them, without replacement, so that every such row is
    drawn with the same probability and the sum stays right in the mean.

    Args:
        item_weights: c, shape ``(N,)``.
        keys: random numbers, shape ``(N,)``; None to keep all rows.
        fraction: part of the rows to keep.

    Examples:
        >>> import torch
        >>> thin(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.9, 0.1, 0.5]), 0.5)
        tensor([0., 0., 4.])
    """
    if keys is None:
        return item_weights
    if torch.compiler.is_compiling():  # shapes must not depend on values
        rows = torch.arange(len(keys), device=keys.device)
    else:
        rows = item_weights.nonzero().squeeze(1)
    if not rows.numel():
        return item_weights
    kept = max(1, math.ceil(fraction * rows.numel()))
    chosen = rows[keys[rows].topk(kept).indices]
    return torch.zeros_like(item_weights).index_copy(0, chosen, item_weights[chosen] * (rows.numel() / kept))


def check_token_fraction(name: str, given: float) -> None:
    """Refuse what is no part of the rows.

    Args:
        name: of the argument.
        given: its value.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 1:
        raise ValueError(f"{name}={given!r}: give the part of the rows to look at, above 0 and at most 1.")
