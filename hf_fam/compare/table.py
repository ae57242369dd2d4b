"""The table of a comparison, as text."""

from __future__ import annotations

import numpy as np

from .outcome import MethodResult, Outcome
from .runs import Settings


def format_settings(settings: Settings) -> str:
    """Return chosen settings in a few characters.

    Examples:
        >>> format_settings(Settings(3e-5, 0.05))
        'lr 3e-05, 0.05'
    """
    parts = [] if settings.learning_rate is None else [f"lr {settings.learning_rate:g}"]
    return ", ".join(parts + ([] if settings.strength is None else [f"{settings.strength:g}"]))


def digits(result: Outcome) -> int:
    """Return the decimals of scores and differences."""
    return 1 if result.metric.scale == 100 else 3


def format_difference(result: Outcome, method: MethodResult) -> str:
    """Return the difference from the baseline with its interval, if that says something."""
    c, d = method.comparison, digits(result) + (result.metric.scale != 100)
    if c is None:
        return "-"
    interval = f"{c.low:+.{d}f} to {c.high:+.{d}f}" if result.shows_interval(method) else "too few runs for an interval"
    return f"{c.difference:+.{d}f} ({interval})"


def format_score(result: Outcome, method: MethodResult) -> str:
    """Return mean and standard deviation over seeds."""
    if not len(method.scores):
        return "-"
    spread = f" ± {np.std(method.scores, ddof=1):.{digits(result)}f}" if len(method.scores) > 1 else ""
    return f"{method.scores.mean():.{digits(result)}f}{spread}"


def time_ratio(result: Outcome, method: MethodResult) -> str:
    """Return the time of a run relative to the baseline."""
    baseline = result.baseline.seconds
    return f"{method.seconds / baseline:.2f} x" if baseline and method.seconds else "-"


def format_table(result: Outcome) -> str:
    """Return one line for each method, below a head."""
    interval = f"minus {result.baseline.name} ({100 * result.confidence:g} % interval)"
    rows = [("", f"{result.metric.name} ± s.d.", interval, "NLL", "time")]
    for m in result.methods:
        settings = format_settings(m.settings) if m.chosen else ""
        name = f"{m.name} ({settings})" if settings else m.name
        nll = "-" if m.nll is None else f"{m.nll:.3f}"
        rows.append((name, format_score(result, m), format_difference(result, m), nll, time_ratio(result, m)))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
