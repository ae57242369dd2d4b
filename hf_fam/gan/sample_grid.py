"""Pictures of generated samples."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data import RealBatch
from .point_picture import save_points

# Smaller images are magnified to at least this height and width.
_LEGIBLE = 64


def image_grid(
    samples: Tensor, low: float = -1.0, high: float = 1.0, columns: int | None = None, magnification: int = 1
) -> Tensor:
    """Arrange images in a grid, with a pixel between them.

    Args:
        samples: of shape (n, channels, height, width) with 1 or 3 channels.
        low: value of black.
        high: value of white.
        columns: number of columns; None: about as many as rows.
        magnification: side of the square that a pixel becomes.

    Returns:
        uint8, of shape (channels, height, width) of the grid.

    Examples:
        >>> image_grid(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([1, 9, 14])
    """
    columns = math.ceil(math.sqrt(len(samples))) if columns is None else columns
    levels = ((samples.detach().cpu().float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    levels = levels.repeat_interleave(magnification, 2).repeat_interleave(magnification, 3)
    rows = math.ceil(len(levels) / columns)
    _, channels, height, width = levels.shape
    grid = torch.zeros(channels, rows * (height + 1) - 1, columns * (width + 1) - 1, dtype=torch.uint8)
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
    real: RealBatch | None = None,
    critic: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    num_classes: int | None = None,
) -> tuple[Path, Tensor | None]:
    """Write samples as a picture, or as a tensor.

    Images make a grid, and points of the plane a scatter plot with real points and level sets of the critic. Other
    samples are saved as a tensor. Images smaller than 64 pixels are magnified.

    Args:
        samples: of shape (n, ...); of all classes in turn, if there are classes.
        stem: the file without its extension.
        low: value of black, for images.
        high: value of white, for images.
        real: real points to draw beside generated ones.
        critic: from points (n, 2) and labels (n,) to their values (n,), for level sets.
        num_classes: number of classes. Images have a column for each, if there are enough samples; points a panel.

    Returns:
        The file, and the grid of images or None.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    picture = stem.with_suffix(".png")
    if is_image(samples):
        columns = num_classes if num_classes is not None and num_classes <= len(samples) else None
        magnification = math.ceil(_LEGIBLE / min(samples.shape[2:]))
        grid = image_grid(samples, low, high, columns, magnification)
        as_picture(grid).save(picture)
        return picture, grid
    if _are_planar(samples):
        save_points(samples, picture, real, critic, num_classes)
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
