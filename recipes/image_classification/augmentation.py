"""Random changes of training images, drawn from torch's global random state, which checkpoints contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageOps


def flip(image: Image.Image) -> Image.Image:
    """Mirrored in one of two cases."""
    return ImageOps.mirror(image) if torch.rand(()) < 0.5 else image


def crop(image: Image.Image) -> Image.Image:
    """Shifted by up to an eighth of its size over a black margin: 4 of 32 pixels."""
    x, y = (int(torch.randint(-(size // 8), size // 8 + 1, ())) for size in image.size)
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


def cutout(image: Image.Image) -> Image.Image:
    """A black square of half the size around a random pixel, cut off at the border (DeVries and Taylor 2017)."""
    x, y = (int(torch.randint(size, ())) for size in image.size)
    halves = [size // 4 for size in image.size]
    image = image.copy()
    image.paste(0, (x - halves[0], y - halves[1], x + halves[0], y + halves[1]))
    return image


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {"flip": flip, "crop": crop, "cutout": cutout}


def parts_of(augmentation: str) -> list[str]:
    """The names in "none" or "flip_crop_cutout".

    Raises:
        ValueError: a name is unknown, or occurs twice.
    """
    names = [] if augmentation == "none" else augmentation.split("_")
    if not {*names} <= {*KINDS} or len({*names}) < len(names):
        raise ValueError(f"augmentation={augmentation!r}: choose none, or some of {', '.join(KINDS)} joined by '_'.")
    return names


def augment(image: Image.Image, names: Sequence[str]) -> Image.Image:
    """One after the other, in this order."""
    for name in names:
        image = KINDS[name](image)
    return image
