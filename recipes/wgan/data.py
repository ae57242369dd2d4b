"""What is generated: three toy distributions of the plane (Gulrajani et al. 2017, section 4.1), and FashionMNIST."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hf_fam.recipes.common.fashion_mnist import TEST, TRAIN, read_images, scale_images


def eight_gaussians(count: int, random: torch.Generator) -> Tensor:
    """Standard deviation 0.014, centers on a circle of radius 1.41."""
    angles = torch.arange(8) * (math.pi / 4)
    centers = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    chosen = torch.randint(8, (count,), generator=random)
    return (centers[chosen] + 0.02 * torch.randn(count, 2, generator=random)) / 2**0.5


def twentyfive_gaussians(count: int, random: torch.Generator) -> Tensor:
    """Standard deviation 0.018, centers on a grid from -1.41 to 1.41."""
    centers = torch.cartesian_prod(*[torch.arange(-2.0, 3.0)] * 2)
    chosen = torch.randint(25, (count,), generator=random)
    return (2 * centers[chosen] + 0.05 * torch.randn(count, 2, generator=random)) / 8**0.5


def swiss_roll(count: int, random: torch.Generator) -> Tensor:
    """A spiral of one and a half turns, radius 0.63 to 1.88, with a little noise."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=random))
    roll = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return (roll + 0.25 * torch.randn(count, 2, generator=random)) / 7.5


FASHION_MNIST = "fashion_mnist"
TOYS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "eight_gaussians": eight_gaussians,
    "twentyfive_gaussians": twentyfive_gaussians,
    "swiss_roll": swiss_roll,
}
DATA = (*TOYS, FASHION_MNIST)


def toy(name: str, train: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points to train on, and others to evaluate on."""
    points = TOYS[name](train + held_out, torch.Generator().manual_seed(seed))
    return points[:train], points[train:]


def fashion_mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Training and test images, (n, 1, 28, 28) in [-1, 1], from the files that its authors publish.

    Raises:
        ValueError: a file is missing.
    """
    train, test = (scale_images(read_images(folder, split)) for split in (TRAIN, TEST))
    return train, test
