"""What is drawn at random for a large vocabulary: signs that sketch the weight, and the tokens that are looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def signs(self, in_features: int, device: torch.device, generator: torch.Generator | None) -> Tensor | None:
        """R, shape ``(m, P)``; None for the exact form."""
        if not self.probes:
            return None
        drawn = torch.randint(0, 2, (in_features, self.probes), generator=generator, device=device, dtype=torch.int8)
        return drawn * 2 - 1

    def keys(self, rows: int, device: torch.device, generator: torch.Generator | None) -> Tensor | None:
        """A random number for every row, by which rows are chosen; None where all are."""
        return None if self.token_fraction == 1 else torch.rand(rows, generator=generator, device=device)

    def draw(
        self, rows: int, in_features: int, device: torch.device, seeds: Seeds
    ) -> tuple[Tensor | None, Tensor | None]:
        """Signs that all processes and micro-batches of a step share, and keys of this one's own."""
        return (
            self.signs(in_features, device, seeds.generator(seeds.shared, 0, device)),
            self.keys(rows, device, seeds.generator(seeds.own, 1, device)),
        )


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
