"""The pictures of paths; matplotlib is imported by the function that draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..inputs.packages import optional_packages
from .path_point import DESCEND, LINE, SLIDE, STEP, TURN, PathPoint


def plot_path(points: Sequence[PathPoint], path: str | Path) -> None:
    """Draw the loss over the ratio of the slide, then over the path's length.

    Both panels share one axis of losses.

    Args:
        points: the points of the path.
        path: the file to write. Its extension selects the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_packages("the picture of a path", "landscape"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    slide = [point for point in points if point.phase == SLIDE]
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([point.ratio for point in slide], [point.loss for point in slide], "o-", markersize=3)
    left.axvspan(0, 1, alpha=0.12, color="gray")
    left.set(title="slide at constant loss", xlabel="ratio λ of the split (gray: between 0 and 1)", ylabel="loss")
    last = slide[-1]
    for phase, style in ((TURN, ":"), (STEP, "-"), (DESCEND, "--")):
        part = [point for point in points if point.phase == phase]
        if part:
            right.plot([p.length for p in (last, *part)], [p.loss for p in (last, *part)], style, label=phase)
            last = part[-1]
    right.set(title="then down", xlabel="length of the path")
    right.legend()
    losses = [point.loss for point in points]
    fall = losses[0] - min(losses)
    figure.suptitle(f"The loss falls by {fall:.3g}, {fall / abs(losses[0] or 1.0):.2%} of itself, and never rises")
    for axes in (left, right):
        # The axis shows the fall, even if it is a small part of the loss.
        axes.set_ylim(losses[0] - 1.08 * fall, losses[0] + 0.08 * fall)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Date": None} if str(path).endswith(".svg") else None)


def plot_infimum_path(points: Sequence[PathPoint], path: str | Path) -> None:
    """Draw the loss at the points of a path to the infimum, one band a phase.

    Args:
        points: the points of the path.
        path: the file to write. Its extension selects the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_packages("the picture of a path", "landscape"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    losses = [point.loss for point in points]
    axes.plot(range(len(points)), losses, "-", linewidth=2)
    start = 0
    phases = [point.phase for point in points[1:]]
    top = max(losses)
    for k in range(1, len(phases) + 1):
        if k == len(phases) or phases[k] != phases[start]:
            axes.axvspan(start, k, alpha=0.12, color="C1" if phases[start] == LINE else "gray")
            axes.text((start + k) / 2, 1.02 * top, phases[start], ha="center", va="bottom")
            start = k
    axes.set(xlabel="point of the path", ylabel="loss", ylim=(min(0.0, *losses), 1.12 * top), xlim=(0, len(phases)))
    axes.set_title("The loss is constant while the weights get ready, then falls to its infimum")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Date": None} if str(path).endswith(".svg") else None)
