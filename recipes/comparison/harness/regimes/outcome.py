"""What a regime returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outcome:
    """Logits of a trained model, and the cost of its training.

    Attributes:
        logits: by part of the split, ``"train"``, ``"validation"`` and ``"test"``; evaluation mode.
        seconds: wall-clock time of training alone.
        cpu_seconds: the same of the processor, which other programs on the machine disturb less.
        steps: of the optimizer.
    """

    logits: dict[str, NDArray[np.floating]]
    seconds: float
    cpu_seconds: float
    steps: int
