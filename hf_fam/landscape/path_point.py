"""A point of a path in the space of parameters, and the phases of paths."""

from __future__ import annotations

from dataclasses import dataclass

SLIDE, TURN, STEP, DESCEND = "slide", "turn", "step", "descend"
TRANSFER, SHRINK, RESTORE, LINE = "transfer", "shrink", "restore", "line"


@dataclass(frozen=True)
class PathPoint:
    """A point of the path.

    Attributes:
        phase: "slide", "turn", "step" or "descend"; on the way to the infimum "transfer", "turn", "shrink", "restore"
            or "line".
        ratio: lambda of the split; constant after the slide, when the two neurons change independently. None if no
            neuron is split.
        length: length of the path so far, in the space of the parameters.
        loss: the loss here.
    """

    phase: str
    ratio: float | None
    length: float
    loss: float
