"""A mean difference and what is known of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from .distributions import t_probability, t_quantile


class Estimate(Protocol):
    """A mean difference and what is known of its error."""

    @property
    def difference(self) -> float:
        """The estimate."""

    @property
    def degrees_of_freedom(self) -> float:
        """Of the standard error; 0 where nothing is known of it."""

    @property
    def variance(self) -> float:
        """The square of the standard error."""

    @property
    def shared(self) -> float:
        """The variance that does not shrink with seeds, by the variance that one seed adds; rather too small."""

    def half_width(self, level: float) -> float:
        """Return half the width of the two-sided interval at a level of error."""

    def least_difference(self, margin: float, probability: float) -> float:
        """Return the least estimate, with this error, that has a probability above the margin."""

    def probability_above(self, margin: float) -> float:
        """Return the confidence, between 0 and 1, that the true difference is above a margin."""


@dataclass(frozen=True)
class TEstimate:
    """A normal mean whose variance is a sum of mean squares, with few degrees of freedom each.

    Two references, because no single one holds both in the middle and far in the tail of the distribution:

    * `probability_above` is Student's t with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2).
    * `half_width` is ``sqrt(sum_k t_k^2 V_k)``, with ``t_k`` the quantile for the degrees of freedom of ``V_k`` alone
      (Banerjee 1960, Sankhya 22). Its interval covers with at least its confidence, for all shares of the ``V_k``. The
      reason is that ``F(x) = P(Z^2 <= x)`` is concave. So the mean of F at a weighted mean of ``t_k^2 V_k / E V_k`` is
      at least the weighted mean of the F, each of which is ``1 - level``. Satterthwaite's t does not: at the levels of
      the first look, three seeds call equal methods different several times too often.

    Attributes:
        difference: the mean.
        parts: variance and degrees of freedom of each part of its error.
        degrees_of_freedom: Satterthwaite's, of the sum.
        shared: see `Estimate`.

    Example:
        >>> seeds, items = (0.3, 2.0), (0.1, 499.0)
        >>> estimate = TEstimate(1.0, (seeds, items), 3.55)
        >>> round(estimate.half_width(0.05), 2), round(estimate.probability_above(0.0), 2)
        (2.44, 0.9)
    """

    difference: float
    parts: tuple[tuple[float, float], ...]
    degrees_of_freedom: float
    shared: float = 0.0

    @property
    def variance(self) -> float:
        """The square of the standard error."""
        return sum(variance for variance, _ in self.parts)

    def half_width(self, level: float) -> float:
        """See `Estimate`."""
        return math.sqrt(sum(t_quantile(1 - level / 2, df) ** 2 * variance for variance, df in self.parts if variance))

    def least_difference(self, margin: float, probability: float) -> float:
        """See `Estimate`."""
        return margin + t_quantile(probability, self.degrees_of_freedom) * math.sqrt(self.variance)

    def probability_above(self, margin: float) -> float:
        """See `Estimate`."""
        return t_probability((self.difference - margin) / math.sqrt(self.variance), self.degrees_of_freedom)


@dataclass(frozen=True)
class UnknownEstimate:
    """A mean of which one seed or one item says nothing about its error.

    Example:
        >>> UnknownEstimate(0.3).half_width(0.05)
        inf
    """

    difference: float
    degrees_of_freedom: float = 0.0
    variance: float = math.inf
    shared: float = 0.0

    def half_width(self, level: float) -> float:
        """See `Estimate`."""
        return math.inf

    def least_difference(self, margin: float, probability: float) -> float:
        """See `Estimate`."""
        return math.inf

    def probability_above(self, margin: float) -> float:
        """See `Estimate`."""
        return 0.5


@dataclass(frozen=True)
class ConstantEstimate:
    """A difference that was the same in every unit, so that its scatter cannot be estimated.

    Equal differences are no proof: three small test sets agree by chance. With confidence ``1 - a``, at most the part
    ``1 - a^(1/n)`` of all units differs from n equal ones, each by at most ``reach``. This is the exact form of the
    rule of three.

    Attributes:
        difference: the constant.
        reach: how far another unit's difference may be from it; 0 where all scores are one number.
        units: number of independent seeds or items.
        shared: see `Estimate`.

    Example:
        >>> [round(ConstantEstimate(0.0, reach=1.0, units=n).half_width(0.05), 3) for n in (3, 300)]
        [0.708, 0.012]
    """

    difference: float
    reach: float
    units: float
    shared: float = 0.0

    @property
    def degrees_of_freedom(self) -> float:
        """One less than the units."""
        return max(self.units - 1, 0.0)

    @property
    def variance(self) -> float:
        """Zero: nothing varied."""
        return 0.0

    def half_width(self, level: float) -> float:
        """See `Estimate`."""
        return self.reach * (1 - (level / 2) ** (1 / self.units))

    def least_difference(self, margin: float, probability: float) -> float:
        """See `Estimate`."""
        return margin + self.half_width(2 * (1 - probability))

    def probability_above(self, margin: float) -> float:
        """See `Estimate`."""
        distance = abs(self.difference - margin)
        if self.reach == 0:
            return float(self.difference > margin)
        doubt = min(0.5, max(0.0, 1 - distance / self.reach) ** self.units)
        return 1 - doubt if self.difference > margin else doubt
