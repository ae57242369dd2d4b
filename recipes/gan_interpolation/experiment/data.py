"""FashionMNIST as its authors publish it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, from_numpy

from hf_fam.recipes.common.fashion_mnist import TEST, TRAIN, read_images, read_labels, scale_images

Part = tuple[Tensor, Tensor]


def fashion_mnist(folder: Path) -> tuple[Part, Part]:
    """Training and test part: images (n, 1, 28, 28) in [-1, 1] and labels (n,)."""
    return read_part(folder, TRAIN), read_part(folder, TEST)


def read_part(folder: Path, split: str) -> Part:
    try:
        return scale_images(read_images(folder, split)), from_numpy(read_labels(folder, split))
    except ValueError as error:
        raise SystemExit(f"--data_dir {error}") from error
