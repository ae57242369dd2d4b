"""The files of FashionMNIST, as its authors publish them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TRAIN, TEST = "train", "t10k"  # as in the names of the files


def read_images(folder: Path, split: str) -> NDArray[np.uint8]:
    """Return the images of a split, shape ``(items, 1, 28, 28)``.

    Args:
        folder: folder with the files.
        split: `TRAIN` or `TEST`.

    Raises:
        ValueError: the file is missing.
    """
    return _read(folder / f"{split}-images-idx3-ubyte.gz", header_size=16).reshape(-1, 1, 28, 28)


def read_labels(folder: Path, split: str) -> NDArray[np.int64]:
    """Return the labels of a split, numbers from 0 to 9, shape ``(items,)``.

    Args:
        folder: folder with the files.
        split: `TRAIN` or `TEST`.

    Raises:
        ValueError: the file is missing.
    """
    return _read(folder / f"{split}-labels-idx1-ubyte.gz", header_size=8).astype(np.int64)


def scale_images(images: NDArray[np.uint8]) -> Tensor:
    """Return images as a tensor with values from -1 to 1."""
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)


def _read(file: Path, header_size: int) -> NDArray[np.uint8]:
    if not file.is_file():
        raise ValueError(f"{file.parent}: there is no {file.name}; give the folder with FashionMNIST's files.")
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header_size)
