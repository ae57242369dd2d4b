"""The strength lambda of the flatness term, and the corresponding size of perturbations."""

from __future__ import annotations

import math
import numbers

from ..inputs.numbers import as_number, require_number, require_whole

# The square of a larger number is infinite.
LARGEST_DELTA = 1e150


def is_strength(value: object) -> bool:
    """Return True for a finite number of at least 0.

    Examples:
        >>> is_strength(0.1), is_strength(-1), is_strength("0.1")
        (True, False, False)
    """
    return isinstance(value, numbers.Real) and 0 <= as_number(value) < math.inf


def delta_of(strength: float, in_features: int) -> float:
    """Return the relative size of the feature perturbations of lambda.

    ``delta = sqrt(2 m lambda)``.

    Args:
        strength: lambda, at least 0.
        in_features: m.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> delta_of(0.005, 400)
        2.0
    """
    strength = require_number("strength", strength, 0)
    return math.sqrt(2 * require_whole("in_features", in_features) * strength)


def lambda_of(delta: float, in_features: int) -> float:
    """Return the lambda of feature perturbations of relative size delta.

    ``lambda = delta^2 / (2 m)``.

    Args:
        delta: size of ``delta A phi`` relative to phi.
        in_features: m.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> lambda_of(2.0, 400)
        0.005
    """
    delta = require_number("delta", delta, 0, LARGEST_DELTA)
    return delta**2 / (2 * require_whole("in_features", in_features))
