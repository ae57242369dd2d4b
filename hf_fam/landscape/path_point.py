"""A point of an escape path, and the phases of the path."""

from __future__ import annotations

from dataclasses import dataclass

SLIDE, TURN, STEP, DESCEND = "slide", "turn", "step", "descend"


@dataclass(frozen=True)
class PathPoint:
    """A point of the path.

    Attributes:
        phase: "slide", "turn", "step" or "descend".
        ratio: lambda of the split; constant after the slide, when the two neurons change independently.
        length: length of the path so far, in the space of the parameters.
        loss: the loss here.
    """

    phase: str
    ratio: float
    length: float
    loss: float
