"""The strength lambda as a function of the training step."""

from __future__ import annotations

import math


def strength_at(step: int, strength: float, warmup: float, total_steps: int) -> float:
    """Return lambda in a step, with a linear warm-up.

    Args:
        step: number of optimizer steps so far.
        strength: lambda after the warm-up.
        warmup: ``fam_warmup_steps``.
        total_steps: number of steps of the training.

    Examples:
        >>> [strength_at(step, 0.01, warmup=4, total_steps=50) for step in (0, 1, 10)]
        [0.0025, 0.005, 0.01]
    """
    steps = warmup_steps(warmup, total_steps)
    return strength * min(1.0, (step + 1) / steps) if steps else strength


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Return the warm-up in steps; below 1 it is a fraction of the training.

    Examples:
        >>> warmup_steps(0.1, 50), warmup_steps(7, 50)
        (5, 7)
    """
    return int(warmup) if warmup >= 1 else math.ceil(total_steps * warmup)
