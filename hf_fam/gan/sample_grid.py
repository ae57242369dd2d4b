"""Pictures of generated samples."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor


def image_grid(samples: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Images side by side, about as many rows as columns, a pixel between them.

    Args:
        samples: of shape (n, channels, height, width) with 1 or 3 channels.
        low: value of black.
        high: value of white.

    Returns:
        uint8, of shape (channels, height, width) of the grid.

    Examples:
        >>> image_grid(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([1, 9, 14])
    """
    count, channels, height, width = samples.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = torch.zeros(channels, rows * (height + 1) - 1, columns * (width + 1) - 1, dtype=torch.uint8)
    levels = ((samples.detach().cpu().float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    for number, image in enumerate(levels):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        grid[:, top : top + height, left : left + width] = image
    return grid


def is_image(samples: Tensor) -> bool:
    """Whether samples have the shape of images, (n, 1 or 3, height, width)."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3)


def is_planar(samples: Tensor) -> bool:
    """Whether samples are points of the plane."""
    return samples.ndim == 2 and samples.shape[1] == 2


def save_image_grid(grid: Tensor, path: Path) -> None:
    """Write a grid of images as PNG.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("sample grids need Pillow: pip install 'hf-fam[gan]'.") from None
    channels_last = grid.permute(1, 2, 0)
    Image.fromarray((channels_last[..., 0] if grid.shape[0] == 1 else channels_last).contiguous().numpy()).save(path)


def save_scatter(samples: Tensor, path: Path) -> None:
    """Write points of the plane as a picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures of points need matplotlib: pip install 'hf-fam[gan]'.") from None
    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x, y = samples.detach().cpu().double().T.numpy()
    axes.scatter(x, y, s=4)
    axes.set_aspect("equal", adjustable="datalim")
    figure.savefig(path, dpi=100)
