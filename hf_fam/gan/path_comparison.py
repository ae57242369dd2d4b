"""Paired differences between paths, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..inputs.packages import optional_packages

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference over pairs, and its 95 % interval by Student's t distribution.

    Attributes:
        mean: positive if the path is better than the baseline.
        low: lower end of the interval.
        high: upper end of the interval.

    Examples:
        >>> print(Difference(0.2, 0.15, 0.25))
        +0.20 (+0.15 to +0.25)
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True)
class PathComparison:
    """Scores of paths minus those of a baseline, over pairs of end points.

    Each interval is for one score alone: one of 20 comparisons without a difference still looks like one.

    Attributes:
        mean: of each score's mean over the inner points of a path.
        worst: of each score's lowest value on the inner points.
        pairs: number of pairs.

    Examples:
        >>> gain, loss = Difference(0.2, 0.1, 0.3), Difference(-0.2, -0.3, -0.1)
        >>> compared = PathComparison({"pixels": gain, "density": loss}, {"pixels": gain, "density": loss}, pairs=100)
        >>> compared.better, compared.worse
        (('pixels',), ('density',))
    """

    mean: dict[str, Difference]
    worst: dict[str, Difference]
    pairs: int

    @property
    def better(self) -> tuple[str, ...]:
        """Return the scores whose mean over the path is higher than the baseline's, beyond the interval."""
        return tuple(name for name, difference in self.mean.items() if difference.low > 0)

    @property
    def worse(self) -> tuple[str, ...]:
        """Return the scores whose mean over the path is lower than the baseline's, beyond the interval."""
        return tuple(name for name, difference in self.mean.items() if difference.high < 0)

    def __str__(self) -> str:
        rows = [("score", "mean over the path", "worst on the path")]
        rows += [(name, str(self.mean[name]), str(self.worst[name])) for name in self.mean]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        undecided = len(self.mean) - len(self.better) - len(self.worse)
        lines.append(
            f"Differences with 95 % intervals, {self.pairs} pairs. Mean over the path: {len(self.better)} of "
            f"{len(self.mean)} scores better, {len(self.worse)} worse, {undecided} undecided."
        )
        return "\n".join(lines)


def paired_difference(values: Tensor, baseline: Tensor) -> Difference:
    """Return the mean of values - baseline over pairs, with its interval.

    Args:
        values: one number a pair, of shape (pairs,), pairs at least 2.
        baseline: of the same shape.
    """
    with optional_packages("an interval", "gan"):
        from scipy.stats import t as student
    differences = (values - baseline).double()
    mean = float(differences.mean())
    error = float(differences.std()) / len(differences) ** 0.5
    half = float(student.ppf(0.5 + CONFIDENCE / 2, len(differences) - 1)) * error
    return Difference(mean, mean - half, mean + half)
