"""Random changes of training images, drawn from the global random state of torch, which checkpoints contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageOps


def flip(image: Image.Image) -> Image.Image:
    """Return an image, mirrored with probability one half."""
    return ImageOps.mirror(image) if torch.rand(()) < 0.5 else image


def crop(image: Image.Image) -> Image.Image:
    """Return an image shifted by up to an eighth of its size over a black margin."""
    x, y = (int(torch.randint(-(size // 8), size // 8 + 1, ())) for size in image.size)
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


def cutout(image: Image.Image) -> Image.Image:
    """Return an image with a black square of half its size around a random pixel.

    The square is cut off at the border (DeVries and Taylor 2017).
    """
    x, y = (int(torch.randint(size, ())) for size in image.size)
    halves = [size // 4 for size in image.size]
    image = image.copy()
    image.paste(0, (x - halves[0], y - halves[1], x + halves[0], y + halves[1]))
    return image


AUGMENTATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {"flip": flip, "crop": crop, "cutout": cutout}


def parse_augmentation(augmentation: str) -> list[str]:
    """Return the names in a value such as "flip_crop_cutout"; "none" has none.

    Raises:
        ValueError: a name is unknown, or occurs twice.
    """
    names = [] if augmentation == "none" else augmentation.split("_")
    if not {*names} <= {*AUGMENTATIONS} or len({*names}) < len(names):
        known = ", ".join(AUGMENTATIONS)
        raise ValueError(f"augmentation={augmentation!r}: choose none, or some of {known} joined by '_'.")
    return names


def augment(image: Image.Image, names: Sequence[str]) -> Image.Image:
    """Apply augmentations one after the other.

    Args:
        image: the image, which is left as it is.
        names: keys of `AUGMENTATIONS`, in the order of application.
    """
    for name in names:
        image = AUGMENTATIONS[name](image)
    return image
