"""The walks as strips of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hf_fam.gan import LatentPath

SHOWN = 12


def strips(paths: Mapping[str, LatentPath], pairs: int) -> Tensor:
    """One picture with a row for each method of each pair, (height, width) in [0, 1]."""
    blocks = []
    for pair in range(pairs):
        for path in paths.values():
            images = path.samples[pair, :, 0]
            blocks.append(torch.cat(list(images[shown(len(images))]), 1))
        blocks.append(torch.ones(6, blocks[0].shape[1]))
    return (torch.cat(blocks[:-1]) + 1) / 2


def shown(points: int) -> list[int]:
    """Return the points of a path that are drawn: all, or twelve at a distance that is as even as points allow.

    Examples:
        >>> shown(10)
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        >>> shown(24)
        [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]
    """
    return torch.linspace(0, points - 1, min(points, SHOWN)).round().int().tolist()


def draw(paths: Mapping[str, LatentPath], file: Path, pairs: int = 3) -> None:
    """Of the first pairs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = min(pairs, len(next(iter(paths.values())).samples))
    picture = strips(paths, pairs)
    height, width = picture.shape
    figure = Figure(figsize=(7, 6 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(1 - picture, cmap="gray", interpolation="nearest", aspect="equal")
    rows = [28 * (k + 0.5) + 6 * (k // len(paths)) for k in range(pairs * len(paths))]
    axes.set_yticks(rows, list(paths) * pairs, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
