"""The figures of a comparison; needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..measure.plotting import LINE_COLORS, PALETTE, new_axes
from .outcome import MethodResult, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Points of a mean curve.
CURVE_POINTS = 40


def forest_plot(result: Outcome) -> Figure:
    """Return the differences from the baseline, with their intervals and the margin."""
    methods = [m for m in result.methods if m.comparison is not None]
    figure, axes = new_axes(1.1 + 0.42 * max(len(methods), 1), "compare")
    axes.axvspan(-result.margin, result.margin, color=PALETTE["wash"], zorder=0)
    axes.axvline(0.0, color=PALETTE["muted"], linewidth=1)
    for row, method in enumerate(methods):
        c: Any = method.comparison
        low, high = (c.low, c.high) if result.shows_interval(method) else (c.difference, c.difference)
        axes.plot([low, high], [row, row], color=PALETTE["blue"], linewidth=2, solid_capstyle="butt")
        axes.plot(c.difference, row, "o", color=PALETTE["blue"])
        axes.annotate(method.verdict, (high, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(methods)), [m.name for m in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.margins(x=0.2)
    direction = "higher" if result.metric.higher_is_better else "lower"
    unit = result.metric.unit.strip() or "units"
    difference = f"{result.metric.name} minus {result.baseline.name}, {unit}"
    axes.set_xlabel(f"{difference}\n({direction} is better; gray: the margin)")
    return figure


def score_plot(result: Outcome) -> Figure:
    """Return the score of every final run, one line for each seed."""
    figure, axes = new_axes(3.0, "compare")
    places = range(len(result.methods))
    for scores in zip(*(m.scores for m in result.methods), strict=True):
        axes.plot(places, scores, color=PALETTE["line"], linewidth=1, zorder=1)
    for place, method in enumerate(result.methods):
        axes.plot([place] * len(method.scores), method.scores, "o", color=PALETTE["blue"], markersize=4, alpha=0.7)
    axes.set_xticks(places, [m.name for m in result.methods], rotation=30, ha="right")
    axes.set_ylabel(result.metric.name)
    return figure


def curve_plot(result: Outcome) -> Figure:
    """Return the mean training loss of the final runs of each method."""
    figure, axes = new_axes(3.4, "compare")
    for k, method in enumerate(result.methods):
        curve = mean_curve(method)
        if curve is not None:
            x, y = curve
            color, style = LINE_COLORS[k % len(LINE_COLORS)], ("-", "--", ":")[k // len(LINE_COLORS) % 3]
            axes.plot(x, y, color=color, linestyle=style, linewidth=1.6, label=method.name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    return figure


def mean_curve(method: MethodResult) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Return epochs and mean loss over the final runs of a method; None if it has no steps."""
    curves = [np.array(curve) for curve in method.curves if len(curve) > 1]
    if not curves:
        return None
    x = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), CURVE_POINTS)
    return x, np.mean([np.interp(x, c[:, 0], c[:, 1]) for c in curves], axis=0)
