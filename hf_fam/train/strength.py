"""The strength lambda of the term: warmed up, capped."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Strength:
    """lambda as a function of the step.

    Args:
        value: lambda after warm-up.
        warmup_steps: number of steps over which lambda rises linearly.
        max_grad_ratio: upper limit for ``||lambda d kappa|| / ||d loss||`` at the features, or None for no limit. It
            lowers lambda and never raises it: strengths that follow the ratio upwards run away as kappa vanishes.
            While the ratio is not known, in the first step, lambda is 0.

    Examples:
        >>> strength = Strength(0.01, warmup_steps=4, max_grad_ratio=0.5)
        >>> strength.at(0), strength.at(1, unit_ratio=1.0), strength.at(10, unit_ratio=100.0)
        (0.0, 0.005, 0.005)
    """

    value: float
    warmup_steps: int = 0
    max_grad_ratio: float | None = None

    def at(self, step: int, unit_ratio: float | None = None) -> float:
        """lambda at a step.

        Args:
            step: optimizer steps already taken.
            unit_ratio: ``||d kappa|| / ||d loss||`` at the features in the step before, or None if unknown.
        """
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        strength = self.value * warm
        if self.max_grad_ratio is None:
            return strength
        return min(strength, self.max_grad_ratio / unit_ratio) if unit_ratio else 0.0


def warmup_steps(given: float, total_steps: int) -> int:
    """Warm-up in steps by the Trainer's convention: below 1 it is a fraction of the training.

    Examples:
        >>> warmup_steps(0.1, 50), warmup_steps(7, 50)
        (5, 7)
    """
    return int(given) if given >= 1 else math.ceil(total_steps * given)
