"""Write CIFAR-10 with the labels that people gave its training images (CIFAR-10N), as tables for the recipe.

    python recipes/image_classification/cifar10n.py CIFAR-10_human.pt out/cifar10n --labels worse
    hf-fam train image_classification --train_file out/cifar10n/train.parquet --test_file out/cifar10n/test.parquet \
        --do_predict --ignore_mismatched_sizes --output_dir out/cifar10n/fam

CIFAR-10_human.pt is from https://github.com/UCSC-REAL/cifar-10-100n (Wei et al., ICLR 2022, "Learning with Noisy Labels
Revisited"; CC BY-NC 4.0). Images are those of uoft-cs/cifar10 on the Hub, or of local parquet files. Test labels are
right.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray

HUB = "uoft-cs/cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What --labels takes, and the column of the original file.
KINDS = {
    "aggregate": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worse": "worse_label",
}
Labels = NDArray[np.int64]


def read_labels(path: Path, kind: str) -> tuple[Labels, Labels, Labels]:
    """Return the numbers of images in CIFAR-10, their right labels, and those by people.

    Args:
        path: the original file, or a parquet file with the columns idx, clean and the kind.
        kind: one of ``KINDS``.
    """
    if path.suffix == ".parquet":
        table = pandas.read_parquet(path, columns=["idx", "clean", kind])
        numbers, right, people = (table[name].to_numpy(np.int64) for name in ("idx", "clean", kind))
        return numbers, right, people
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    allowed: list[Any] = [(np._core.multiarray._reconstruct, name) for name in names]
    allowed += [np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("int64", "int32", "uint8"))]
    with torch.serialization.safe_globals(allowed):  # arrays only, no code of the file runs
        arrays = torch.load(path, weights_only=True)
    right, people = (np.asarray(arrays[name]).astype(np.int64) for name in ("clean_label", KINDS[kind]))
    return np.arange(len(right)), right, people


def read_images(path: Path | None, part: str) -> pandas.DataFrame:
    """Return the images of a part of CIFAR-10, with their numbers and right labels.

    Args:
        path: a parquet file with the columns idx, image and label; None: the Hub.
        part: train or test.
    """
    if path is not None:
        return pandas.read_parquet(path)
    from datasets import Image, load_dataset

    data = load_dataset(HUB, split=part).cast_column("img", Image(decode=False))
    return pandas.DataFrame({"idx": np.arange(len(data)), "image": list(data["img"]), "label": list(data["label"])})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("human_labels", type=Path, help="CIFAR-10_human.pt, or a parquet file with idx and clean")
    parser.add_argument("output", type=Path, help="folder for train.parquet and test.parquet")
    parser.add_argument("--labels", choices=list(KINDS), default="worse", help="which labels by people")
    parser.add_argument("--train_images", type=Path, help="parquet file with idx, image and label; default: the Hub")
    parser.add_argument("--test_images", type=Path, help="the same for the test images")
    options = parser.parse_args(arguments)
    numbers, right, people = read_labels(options.human_labels, options.labels)
    images, test = read_images(options.train_images, "train"), read_images(options.test_images, "test")
    labeled = pandas.DataFrame({"idx": numbers, "right": right, "people": people})
    rows = images.merge(labeled, on="idx", validate="one_to_one")
    if rows.empty or (rows.label != rows.right).any():
        sys.exit(
            f"{options.human_labels}: its right labels are not those of the images: both must be CIFAR-10's training "
            "images in their original order."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    for name, data, numbers in (("train", rows.image, rows.people), ("test", test.image, test.label)):
        table = pandas.DataFrame({"image": data, "label": [CLASSES[k] for k in numbers]})
        table.to_parquet(options.output / f"{name}.parquet")
    print(f"{len(rows):,} training images, {(rows.people != rows.right).mean():.1%} of the labels are wrong")


if __name__ == "__main__":
    main()
