"""How long a comparison may take."""

from __future__ import annotations

import math
import re
import time

from ..inputs.numbers import as_number
from ..inputs.text import quote

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_budget(budget: str | float | None) -> float | None:
    """Return a budget in seconds; None: no limit.

    Args:
        budget: seconds, or a text such as ``"90s"``, ``"20m"`` or ``"1.5h"``.

    Raises:
        ValueError: it is no positive time.

    Examples:
        >>> parse_budget("20m"), parse_budget(90)
        (1200.0, 90.0)
    """
    if budget is None:
        return None
    text = str(as_number(budget)) if isinstance(budget, (int, float)) else budget if isinstance(budget, str) else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text.lower())
    unit = re.fullmatch("(s|m|h|d)|(sec|min)s?|(second|minute|hour|day)s?", match[2] or "s") if match else None
    seconds = float(match[1]) * _UNITS[unit[0][0]] if match and unit else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"budget={quote(budget)}: give a time, such as 90s, 20m or 2h.")
    return seconds


def format_time(seconds: float) -> str:
    """Return a time as people say it.

    Examples:
        >>> format_time(0.4), format_time(75), format_time(1080), format_time(9000)
        ('0.4 seconds', '75 seconds', '18 minutes', '2.5 hours')
    """
    if seconds < 10:
        return f"{seconds:.1f} seconds"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


class Clock:
    """Time since the start of a comparison, and what is left of its budget.

    Args:
        budget: seconds; None: no limit.
    """

    def __init__(self, budget: float | None) -> None:
        self._budget, self._start = budget, time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._start

    def is_enough_for(self, seconds: float) -> bool:
        """Return True if something that takes so long ends within the budget."""
        return self._budget is None or self.elapsed + seconds <= self._budget
