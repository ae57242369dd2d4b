"""The picture of an escape path; matplotlib is imported by the function that draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .path_point import DESCEND, SLIDE, PathPoint


def plot_path(points: Sequence[PathPoint], path: str | Path) -> None:
    """Draw the loss over the ratio of the slide, then over the path's length.

    Both panels share one axis of losses.

    Args:
        points: the points of the path.
        path: the file to write. Its extension selects the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slide = [point for point in points if point.phase == SLIDE]
    rest = [slide[-1], *(point for point in points if point.phase != SLIDE)]
    steps = [point for point in rest if point.phase != DESCEND]
    descent = [steps[-1], *(point for point in rest if point.phase == DESCEND)]
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([point.ratio for point in slide], [point.loss for point in slide], "o-", markersize=3)
    left.axvspan(0, 1, alpha=0.12, color="gray")
    left.set(title="slide at constant loss", xlabel="ratio λ of the split (gray: between 0 and 1)", ylabel="loss")
    right.plot([point.length for point in steps], [point.loss for point in steps], "-", label="step")
    right.plot([point.length for point in descent], [point.loss for point in descent], "--", label="descend")
    right.set(title="then down", xlabel="length of the path")
    right.legend()
    for axes in (left, right):
        axes.set_ylim(bottom=0 if min(point.loss for point in points) >= 0 else None)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Date": None} if str(path).endswith(".svg") else None)
