"""Pictures of generated samples."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Points on each side of the raster for level sets.
_RASTER = 60


def image_grid(samples: Tensor, low: float = -1.0, high: float = 1.0, columns: int | None = None) -> Tensor:
    """Arrange images in a grid, with a pixel between them.

    Args:
        samples: of shape (n, channels, height, width) with 1 or 3 channels.
        low: value of black.
        high: value of white.
        columns: number of columns; None: about as many as rows.

    Returns:
        uint8, of shape (channels, height, width) of the grid.

    Examples:
        >>> image_grid(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([1, 9, 14])
    """
    count, channels, height, width = samples.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = math.ceil(count / columns)
    grid = torch.zeros(channels, rows * (height + 1) - 1, columns * (width + 1) - 1, dtype=torch.uint8)
    levels = ((samples.detach().cpu().float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    for number, image in enumerate(levels):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        grid[:, top : top + height, left : left + width] = image
    return grid


def refuse_missing_package(samples: Tensor) -> None:
    """Refuse samples if the package for their pictures is not installed.

    Raises:
        ValueError: Pillow is missing, or matplotlib for points of the plane.
    """
    package = "PIL" if is_image(samples) else "matplotlib" if _are_planar(samples) else None
    if package is not None and importlib.util.find_spec(package) is None:
        raise ValueError(f"sample_steps: pictures need {package}: pip install 'hf-fam[gan]', or set sample_steps=0.")


def write_picture(
    samples: Tensor,
    stem: Path,
    low: float,
    high: float,
    real: Tensor | None = None,
    critic: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Path, Tensor | None]:
    """Write samples as a picture, or as a tensor.

    Images make a grid, and points of the plane a scatter plot with real points and level sets of the critic. Other
    samples are saved as a tensor.

    Args:
        samples: of shape (n, ...).
        stem: the file without its extension.
        low: value of black, for images.
        high: value of white, for images.
        real: real points to draw beside generated ones.
        critic: from points (n, 2) to their values (n,), for level sets.

    Returns:
        The file, and the grid of images or None.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    picture = stem.with_suffix(".png")
    if is_image(samples):
        grid = image_grid(samples, low, high)
        as_picture(grid).save(picture)
        return picture, grid
    if _are_planar(samples):
        _save_scatter(samples, picture, real, critic)
        return picture, None
    torch.save(samples.cpu(), stem.with_suffix(".pt"))
    return stem.with_suffix(".pt"), None


def is_image(samples: Tensor) -> bool:
    """Return True if samples have the shape of gray or color images."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3)


def _are_planar(samples: Tensor) -> bool:
    return samples.ndim == 2 and samples.shape[1] == 2


def as_picture(grid: Tensor) -> Any:
    """Return a grid from `image_grid` as an image of Pillow."""
    from PIL import Image

    channels_last = grid.permute(1, 2, 0)
    return Image.fromarray((channels_last[..., 0] if grid.shape[0] == 1 else channels_last).contiguous().numpy())


def _save_scatter(samples: Tensor, path: Path, real: Tensor | None, critic: Callable[[Tensor], Tensor] | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    clouds = {"generated": samples} if real is None else {"real": real, "generated": samples}
    drawn = torch.cat(list(clouds.values()))
    if critic is not None and drawn.isfinite().all():
        _draw_level_sets(axes, drawn, critic)
    for (name, points), color in zip(clouds.items(), ("black", "tab:orange")[-len(clouds) :], strict=True):
        x, y = points.detach().cpu().double().T.numpy()
        axes.scatter(x, y, s=4, color=color, label=name)
    if real is not None:
        axes.legend(loc="upper right", markerscale=3)
    axes.set_aspect("equal", adjustable="datalim")
    figure.savefig(path, dpi=100)


def _draw_level_sets(axes: Any, points: Tensor, critic: Callable[[Tensor], Tensor]) -> None:
    """Draw the critic's values around some points."""
    points = points.detach()
    margin = 0.1 * (points.amax(0) - points.amin(0)).clamp(min=1e-3)
    low, high = (points.amin(0) - margin).tolist(), (points.amax(0) + margin).tolist()
    x, y = (torch.linspace(a, b, _RASTER, dtype=points.dtype) for a, b in zip(low, high, strict=True))
    raster = torch.cartesian_prod(x, y).to(points.device)
    values = critic(raster).detach().cpu().double().reshape(_RASTER, _RASTER)
    if values.isfinite().all() and values.max() > values.min():
        axes.contourf(x.double().numpy(), y.double().numpy(), values.T.numpy(), levels=12, cmap="Blues", alpha=0.7)
