"""Better, the same for all practical purposes, worse, or undecided."""

from __future__ import annotations

from enum import Enum

from .estimate import Estimate

# How sure a gain or a loss above the margin has to be.
PROBABILITY = 0.95


class Verdict(str, Enum):
    """What the scores say about a method and the baseline.

    Attributes:
        BETTER: the interval of the gain is above zero, and the probability of a gain above the margin is at least 0.95.
        WORSE: the same of the loss.
        SAME: the interval is within plus and minus the margin.
        UNDECIDED: none of these.

    Example:
        >>> Verdict("better") is Verdict.BETTER
        True
    """

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    UNDECIDED = "undecided"

    def __str__(self) -> str:
        return self.value


def decide(gain: Estimate, half_width: float, margin: float) -> Verdict:
    """Return the verdict.

    Args:
        gain: estimate of the gain, positive where the method is better.
        half_width: half the width of its interval.
        margin: gains up to it make no practical difference.
    """
    if abs(gain.difference) + half_width <= margin:
        return Verdict.SAME
    if gain.difference > half_width and gain.probability_above(margin) >= PROBABILITY:
        return Verdict.BETTER
    if -gain.difference > half_width and 1 - gain.probability_above(-margin) >= PROBABILITY:
        return Verdict.WORSE
    return Verdict.UNDECIDED
