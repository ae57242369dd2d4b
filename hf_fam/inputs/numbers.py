"""Numbers as arguments: converted, or refused by name."""

from __future__ import annotations

import math
from typing import Any

from .text import quote

# The largest whole number that loops, tensors and random generators take everywhere.
LARGEST_WHOLE = 2**31 - 1
LARGEST_SEED = 2**32 - 1
# A batch is differentiated once for each probe.
MOST_PROBES = 10_000


def as_number(value: Any) -> float:
    """Return a value as a float, or NaN if it is none; strings are read, as YAML may have left them.

    Examples:
        >>> as_number("1e-3"), as_number([1]), as_number(10**400)
        (0.001, nan, inf)
    """
    if isinstance(value, (bool, bytes, bytearray)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # of a whole number beyond the range of floats
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # of any class, arrays and tensors among them
        return math.nan


def require_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    more: str = "",
) -> float:
    """Return a finite number within bounds.

    Args:
        name: name of the argument, for the message.
        value: what was given.
        low: smallest number.
        high: largest number.
        open_low: whether ``low`` itself is refused.
        open_high: whether ``high`` itself is refused.
        more: end of the message, such as other values that are allowed.

    Raises:
        ValueError: names the argument, the value and the bounds.

    Examples:
        >>> require_number("learning_rate", "nan", 0)
        Traceback (most recent call last):
            ...
        ValueError: learning_rate='nan': give a number of at least 0.
    """
    number = as_number(value)
    is_inside = (low < number if open_low else low <= number) and (number < high if open_high else number <= high)
    if not (math.isfinite(number) and is_inside):
        raise ValueError(f"{name}={quote(value)}: give a {_bounds(low, high, open_low, open_high)}{more}.")
    return number


def require_whole(name: str, value: Any, low: int = 1, high: int = LARGEST_WHOLE, *, more: str = "") -> int:
    """Return a whole number within bounds; 2.0 is one, as a search over floats or JSON may have made it.

    Args:
        name: name of the argument, for the message.
        value: what was given.
        low: smallest number.
        high: largest number.
        more: end of the message, such as other values that are allowed.

    Raises:
        ValueError: names the argument, the value and the bounds.

    Examples:
        >>> require_whole("probes", 2.0)
        2
        >>> require_whole("probes", 10**30)
        Traceback (most recent call last):
            ...
        ValueError: probes=1000000000000000000000000000000: give a whole number from 1 to 2147483647.
    """
    number = as_number(value)
    if not number.is_integer() or not low <= number <= high:
        raise ValueError(f"{name}={quote(value)}: give a whole number from {low} to {high}{more}.")
    return int(number)


def require_positive_numbers(name: str, values: Any, *, more: str = "") -> tuple[float, ...]:
    """Return positive finite numbers, at least one.

    Args:
        name: name of the argument, for the message.
        values: what was given.
        more: end of the message, such as an example.

    Raises:
        ValueError: names the argument and what was given.

    Examples:
        >>> require_positive_numbers("deltas", [1, "0.5"])
        (1.0, 0.5)
        >>> require_positive_numbers("deltas", 3)
        Traceback (most recent call last):
            ...
        ValueError: deltas=3: give a sequence of positive numbers.
    """
    try:
        numbers = () if isinstance(values, (str, bytes, dict)) else tuple(as_number(value) for value in values)
    except TypeError:  # of one number, or of any other class
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{name}={quote(values)}: give a sequence of positive numbers{more}.")
    return numbers


def _bounds(low: float, high: float, open_low: bool, open_high: bool) -> str:
    parts = []
    if low > -math.inf:
        parts.append(f"above {low:g}" if open_low else f"of at least {low:g}")
    if high < math.inf:
        parts.append(f"below {high:g}" if open_high else f"at most {high:g}")
    return f"number {' and '.join(parts)}" if parts else "finite number"
