"""The strength lambda of the term, and the size of perturbations that it stands for."""

from __future__ import annotations

import math
import numbers


def is_strength(value: object) -> bool:
    """Whether it is a finite number of at least 0.

    Examples:
        >>> is_strength(0.1), is_strength(-1), is_strength("0.1")
        (True, False, False)
    """
    return isinstance(value, numbers.Real) and 0 <= float(value) < math.inf


def delta_of(strength: float, in_features: int) -> float:
    """Relative size of the feature perturbation that lambda stands for, ``sqrt(2 m lambda)``.

    Args:
        strength: lambda, not negative.
        in_features: m.

    Examples:
        >>> delta_of(0.005, 400)
        2.0
    """
    return math.sqrt(2 * in_features * strength)


def lambda_of(delta: float, in_features: int) -> float:
    """The lambda that perturbations of relative size delta stand for, ``delta^2 / (2 m)``.

    Args:
        delta: size of ``delta A phi`` relative to phi.
        in_features: m.

    Examples:
        >>> lambda_of(2.0, 400)
        0.005
    """
    return delta**2 / (2 * in_features)
