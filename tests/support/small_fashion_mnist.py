"""Files as FashionMNIST's, with few images that a small network learns at once."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_small_fashion_mnist(folder: Path, train: int, test: int) -> Path:
    """Write bright squares whose place is their label, in noise, and return the folder."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = random.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[9 * row : 9 * row + 8, 7 * column : 7 * column + 7] = 250
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder
