"""Student's t and the normal distribution; the one module here that needs scipy."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from ...inputs.packages import optional_packages


def special() -> ModuleType:
    """Return ``scipy.special``.

    Raises:
        ImportError: scipy is missing.
    """
    with optional_packages("comparing methods", "compare"):
        from scipy import special as module
    return module


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the quantile of Student's t distribution."""
    return float(special().stdtrit(degrees_of_freedom, probability))


def t_probability(value: float, degrees_of_freedom: float) -> float:
    """Return P(T <= value) of Student's t distribution."""
    return float(special().stdtr(degrees_of_freedom, value))


def normal_probability(values: Any) -> Any:
    """Return P(Z <= value), elementwise."""
    return special().ndtr(values)


def chi_square_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the quantile of the chi-square distribution."""
    return float(special().chdtri(degrees_of_freedom, 1 - probability))


def two_sided_z(level: float) -> float:
    """Return the c with P(|Z| > c) = level."""
    return -float(special().ndtri(level / 2))


def two_sided_level(z: float) -> float:
    """Return P(|Z| > z)."""
    return 2 * float(special().ndtr(-z)) if math.isfinite(z) else 0.0
