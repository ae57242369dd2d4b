"""Figures; matplotlib is imported by the functions that draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Panel:
    """One coordinate system of a figure.

    Attributes:
        key: name of the quantity in the records.
        title: what it is called.
        log: draw it on a logarithmic scale.
    """

    key: str
    title: str
    log: bool = False


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, float]]], panels: Sequence[Panel], path: str | Path, x: str = "step"
) -> None:
    """Draw quantities of several training runs side by side, a panel for each quantity and a line for each run.

    Args:
        runs: for each run's name, what was recorded, in order; a record may lack a quantity.
        panels: what to draw.
        path: the file to write; its ending is the format.
        x: name of the quantity on the horizontal axis.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: no record of a run contains a quantity.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "runs.png")
        >>> plot_runs({"a run": [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}]}, [Panel("loss", "loss")], path)
        >>> path.exists()
        True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: no display, and no figures of the caller's are touched.
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, records), style in zip(runs.items(), _styles(len(runs)), strict=True):
            points = [(r[x], r[panel.key]) for r in records if panel.key in r]
            axes.plot(*zip(*points, strict=True), style, label=name)
        axes.set(title=panel.title, xlabel=x, yscale="log" if panel.log else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=150)


def _styles(count: int) -> list[str]:
    """Lines that can be told apart without colour too."""
    return [["-", "--", ":", "-."][k % 4] for k in range(count)]
