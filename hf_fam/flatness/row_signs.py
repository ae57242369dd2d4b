"""Random signs that sketch the weight of a head with a large vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calculus.signs import key, signs, subkeys
from .batch import Seeds


def row_signs(probes: int, in_features: int, device: torch.device, seeds: Seeds) -> Tensor | None:
    """Return the signs R of the seeds, the same in a whole step.

    Args:
        probes: P, the number of row probes; 0 for the exact form.
        in_features: m.
        device: device of the result.
        seeds: seeds of the signs.

    Returns:
        Shape ``(m, P)``; None without probes.
    """
    if not probes:
        return None
    keys = subkeys(key((*seeds.numbers, "R"), device), torch.arange(in_features, device=device))
    return signs(keys, probes, torch.int8)


def random_row_signs(probes: int, in_features: int, device: torch.device) -> Tensor | None:
    """Return signs from torch's random state, for compiled code without seeds.

    Args:
        probes: P, the number of row probes; 0 for the exact form.
        in_features: m.
        device: device of the result.

    Returns:
        Shape ``(m, P)``; None without probes.
    """
    if not probes:
        return None
    return torch.randint(0, 2, (in_features, probes), device=device, dtype=torch.int8) * 2 - 1
