"""Several methods against one baseline (Holm 1979, Scandinavian Journal of Statistics 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .estimate import Estimate
from .spending import level_of_look


def levels(estimates: Mapping[str, Estimate], seeds: Sequence[int], alpha: float) -> dict[str, float]:
    """Return the level of each method's interval at the last of several looks.

    With m methods the intervals are first those of ``alpha / m``. Methods whose intervals leave zero out are set aside,
    and the others share alpha among themselves, until no interval leaves zero out. Each share is spent over all looks.
    So the probability that any equal method is called different at any look is at most alpha, whichever methods do
    differ: of k equal methods, the first that is called different had a share of at most ``alpha / k``.

    Args:
        estimates: by method.
        seeds: number of seeds at each look so far.
        alpha: probability of an error over all looks and methods.
    """
    different: dict[str, float] = {}
    while True:
        remaining = [name for name in estimates if name not in different]
        level = {name: level_of_look(seeds, alpha / len(remaining), estimates[name].shared) for name in remaining}
        widths = {name: estimates[name].half_width(level[name]) for name in remaining}
        new = {name: level[name] for name in remaining if abs(estimates[name].difference) > widths[name]}
        if not new:
            return different | level
        different |= new
