"""When an assumption about a model or its loss is checked again."""

from __future__ import annotations


class RecheckSchedule:
    """Schedule of checks: batches 0, 1, 2, 4, ..., 64, then every hundredth.

    A loss may change its form early, as a preference loss does that begins at its reference.
    """

    EVERY = 100

    def __init__(self) -> None:
        self._calls = 0

    def is_due(self) -> bool:
        """Count one batch and return True if it is checked."""
        number, self._calls = self._calls, self._calls + 1
        is_early = number < self.EVERY and number & (number - 1) == 0  # 0 or a power of two
        return is_early or number % self.EVERY == 0
