"""Pictures of paths between latent codes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..inputs.packages import optional_packages
from .sample_grid import as_picture, image_grid, is_image


def write_paths(samples: Tensor, path: Path, low: float, high: float) -> None:
    """Draw paths, a row of images for each pair, or lines in the plane.

    Args:
        samples: of shape (pairs, points, ...).
        path: the file to write.
        low: value of black, for images.
        high: value of white, for images.

    Raises:
        ValueError: the samples are neither images nor points of the plane.
    """
    if samples.ndim == 3 and samples.shape[2] == 2:
        _write_lines(samples, path)
        return
    _refuse_other_samples(samples)
    as_picture(image_grid(samples.flatten(0, 1), low, high, columns=samples.shape[1])).save(path)


def write_animation(samples: Tensor, path: Path, low: float, high: float, seconds: float) -> None:
    """Write an animation along the paths and back, with all pairs side by side.

    Args:
        samples: images of shape (pairs, points, channels, height, width).
        path: the file to write, a GIF.
        low: value of black.
        high: value of white.
        seconds: duration of the way from one end to the other.

    Raises:
        ValueError: the samples are no images.
    """
    _refuse_other_samples(samples)
    frames = [as_picture(image_grid(step, low, high)) for step in samples.unbind(1)]
    frames += frames[-2:0:-1]
    milliseconds = round(1000 * seconds / (samples.shape[1] - 1))
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def _refuse_other_samples(samples: Tensor) -> None:
    if not is_image(samples[0]):
        raise ValueError(
            f"samples of shape {tuple(samples.shape[2:])} make no picture. Give a generator of images of shape "
            "(channels, height, width) with 1 or 3 channels, or plot `samples` with another library."
        )


def _write_lines(samples: Tensor, path: Path) -> None:
    with optional_packages("plot of points", "gan"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for line in samples.detach().cpu().double():
        axes.plot(line[:, 0].numpy(), line[:, 1].numpy(), "o-", markersize=3)
    axes.set_aspect("equal", adjustable="datalim")
    figure.savefig(path, dpi=150)


def at_share(latents: Tensor, share: float) -> Tensor:
    """Return latent codes at a share of the points, between 0 and 1.

    Args:
        latents: of shape (pairs, points, ...).
        share: 0 for the first point, 1 for the last. Between two points, codes are interpolated linearly.

    Returns:
        Of shape (pairs, ...).

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"t={share!r}: give a number between 0 (z0) and 1 (z1).")
    position = share * (latents.shape[1] - 1)
    left = min(int(position), latents.shape[1] - 2)
    fraction = position - left
    if fraction in (0, 1):
        return latents[:, left + int(fraction)]
    return torch.lerp(latents[:, left], latents[:, left + 1], fraction)
