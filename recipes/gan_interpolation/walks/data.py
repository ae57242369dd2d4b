"""FashionMNIST as its authors publish it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]


def fashion_mnist(folder: Path) -> tuple[Part, Part]:
    """Training and test part: images (n, 1, 28, 28) in [-1, 1] and labels (n,)."""
    return read_part(folder, "train"), read_part(folder, "t10k")


def read_part(folder: Path, name: str) -> Part:
    files = [folder / f"{name}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SystemExit(f"--data_dir {folder} has no {', '.join(missing)}: give the folder with FashionMNIST's files.")
    pixels, labels = (gzip.decompress(file.read_bytes()) for file in files)
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32)
    return torch.from_numpy(images / 127.5 - 1), torch.from_numpy(
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    )
