"""The reader of FashionMNIST's files, which several studies share."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from hf_fam.recipes.common.fashion_mnist import TEST, TRAIN, read_images, read_labels, scale_images


def test_files_in_the_published_format(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
        (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    assert np.array_equal(read_images(tmp_path, TEST), images[:, None])
    assert read_labels(tmp_path, TEST).tolist() == [0, 1, 2, 3, 4]
    scaled = scale_images(read_images(tmp_path, TEST))
    assert scaled.shape == (5, 1, 28, 28) and scaled.flatten()[0] == pytest.approx(images.flat[0] / 127.5 - 1)
    with pytest.raises(ValueError, match="there is no train-labels-idx1-ubyte.gz; give the folder"):
        read_labels(tmp_path, TRAIN)


@pytest.mark.skipif("HF_FAM_DATA" not in os.environ, reason="HF_FAM_DATA is not set: no FashionMNIST")
def test_the_published_files() -> None:
    folder = Path(os.environ["HF_FAM_DATA"], "fashion_mnist")
    for split, count in ((TRAIN, 60_000), (TEST, 10_000)):
        assert read_images(folder, split).shape == (count, 1, 28, 28)
        assert np.bincount(read_labels(folder, split)).tolist() == [count // 10] * 10
