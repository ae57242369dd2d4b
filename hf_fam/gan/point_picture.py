"""Pictures of generated points of the plane, with real points and level sets of the critic."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data import RealBatch

# Points on each side of the raster for level sets.
_RASTER = 60
# Panels of a picture with classes: the first ones.
_PANELS = 16

Critic = Callable[[Tensor, Tensor | None], Tensor]


def save_points(
    samples: Tensor, path: Path, real: RealBatch | None, critic: Critic | None, num_classes: int | None
) -> None:
    """Save a scatter plot, with a panel for each of the first 16 classes.

    Args:
        samples: of shape (n, 2); of all classes in turn, if there are classes.
        path: of the picture.
        real: real points to draw beside generated ones.
        critic: from points (n, 2) and labels (n,) to their values (n,), for level sets.
        num_classes: number of classes; None: one panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 1 if num_classes is None else min(num_classes, _PANELS)
    columns = math.ceil(math.sqrt(panels))
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    points = None if real is None else real.samples.to(samples.dtype)
    for number, axes in enumerate(grid):
        if number >= panels:
            axes.set_axis_off()
        elif num_classes is None:
            _draw(axes, samples, points, critic, None)
        else:
            own = points[real.labels == number] if points is not None and real is not None else None
            _draw(axes, samples[number::num_classes], own, critic, number)
            axes.set_title(f"class {number}")
    if real is not None:
        grid[0].legend(loc="upper right", markerscale=3)
    figure.savefig(path, dpi=100)


def _draw(axes: Any, samples: Tensor, real: Tensor | None, critic: Critic | None, label: int | None) -> None:
    clouds = {"generated": samples} if real is None else {"real": real, "generated": samples}
    drawn = torch.cat(list(clouds.values()))
    if critic is not None and len(drawn) and drawn.isfinite().all():
        _draw_level_sets(axes, drawn, critic, label)
    for (name, points), color in zip(clouds.items(), ("black", "tab:orange")[-len(clouds) :], strict=True):
        x, y = points.detach().cpu().double().T.numpy()
        axes.scatter(x, y, s=4, color=color, label=name)
    axes.set_aspect("equal", adjustable="datalim")


def _draw_level_sets(axes: Any, points: Tensor, critic: Critic, label: int | None) -> None:
    """Draw the critic's values around some points."""
    points = points.detach()
    margin = 0.1 * (points.amax(0) - points.amin(0)).clamp(min=1e-3)
    low, high = (points.amin(0) - margin).tolist(), (points.amax(0) + margin).tolist()
    x, y = (torch.linspace(a, b, _RASTER, dtype=points.dtype) for a, b in zip(low, high, strict=True))
    raster = torch.cartesian_prod(x, y).to(points.device)
    labels = None if label is None else torch.full((len(raster),), label, device=points.device)
    values = critic(raster, labels).detach().cpu().double().reshape(_RASTER, _RASTER)
    if values.isfinite().all() and values.max() > values.min():
        axes.contourf(x.double().numpy(), y.double().numpy(), values.T.numpy(), levels=12, cmap="Blues", alpha=0.7)
