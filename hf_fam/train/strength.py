"""The strength lambda of the term as a function of the step."""

from __future__ import annotations

import math


def strength_at(step: int, strength: float, warmup: float, total_steps: int) -> float:
    """Return lambda in a step, after a linear warm-up.

    Args:
        step: optimizer steps already taken.
        strength: lambda after warm-up.
        warmup: ``fam_warmup_steps``.
        total_steps: of the training.

    Examples:
        >>> [strength_at(step, 0.01, warmup=4, total_steps=50) for step in (0, 1, 10)]
        [0.0025, 0.005, 0.01]
    """
    steps = warmup_steps(warmup, total_steps)
    return strength * min(1.0, (step + 1) / steps) if steps else strength


def warmup_steps(given: float, total_steps: int) -> int:
    """Return the warm-up in steps, by the Trainer's convention: below 1 it is a fraction of the training.

    Examples:
        >>> warmup_steps(0.1, 50), warmup_steps(7, 50)
        (5, 7)
    """
    return int(given) if given >= 1 else math.ceil(total_steps * given)
