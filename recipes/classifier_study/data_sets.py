"""Features of the study's data sets, computed once and kept: a pool to draw training samples from, and test samples.

    python recipes/classifier_study/data_sets.py --data PATH --cache out/classifier_study/features

PATH is a folder with CIFAR-10, CIFAR-10N, FashionMNIST, noisy AG News, Banking77 and GLUE in parquet files. Images
become the 1,280 features below the head of EfficientNet-Lite0, texts the mean of the 384 features of
all-MiniLM-L6-v2. Both models are frozen and come from packages.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
COMPARISON = ROOT / "recipes" / "comparison"
# Samples in the pool and in the test set; computing features is most of the cost of the study.
SIZES = {
    "cifar10": (6000, 2000),
    "fashion_mnist": (4000, 2000),
    "ag_news": (5000, 2000),
    "banking77": (10003, 3080),
    "sst2": (4000, 872),
    "cola": (4000, 1043),
    "fashion_pixels": (20000, 5000),
}
TABLES = ("digits", "wine", "breast_cancer")


@dataclass(frozen=True)
class DataSet:
    """Features and labels.

    Attributes:
        pool: features to draw training and validation samples from, (N, m).
        labels: the right labels of the pool, and others by their name, such as those that people gave.
        test: features of the test samples.
        test_labels: their right labels.
    """

    pool: NDArray[np.float64]
    labels: dict[str, NDArray[np.int64]]
    test: NDArray[np.float64]
    test_labels: NDArray[np.int64]


def load(name: str, cache: Path) -> DataSet:
    """Return a data set; one from files must have been stored before.

    A table of scikit-learn has no test samples: what is not used for training is for test.
    """
    if name in TABLES:
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, f"load_{name}")()
        return DataSet(bunch.data, {"right": bunch.target}, bunch.data[:0], bunch.target[:0])
    with np.load(cache / f"{name}.npz") as file:
        labels = {key.removeprefix("labels_"): file[key] for key in file.files if key.startswith("labels_")}
        return DataSet(file["pool"].astype(float), labels, file["test"].astype(float), file["test_labels"])


def store(name: str, data: Path, cache: Path) -> None:
    """Compute the features of a data set, and write them to a file."""
    import pandas

    sys.path.append(str(COMPARISON))
    from harness.embeddings import embed, embed_images
    from harness.tasks import READERS

    labels: dict[str, NDArray[np.int64]] = {}
    if name == "ag_news":
        files = [
            pandas.read_parquet(data / "noisy_labels" / f"noisy-ag-news-{part}.parquet") for part in ("train", "test")
        ]
        pool_inputs, test_inputs = ([(text,) for text in file["text"]] for file in files)
        labels = {"right": files[0]["label"].to_numpy(), "people": files[0]["noisy_label"].to_numpy()}
        test_labels = files[1]["label"].to_numpy()
    else:
        pool, test = READERS["fashion_mnist" if name == "fashion_pixels" else name](data)
        pool_inputs, test_inputs, labels["right"], test_labels = pool.inputs, test.inputs, pool.labels, test.labels
        if name == "cifar10":
            people = pandas.read_parquet(data / "noisy_labels" / "cifar10n-15k.parquet")
            labels |= {kind: people[kind].to_numpy() for kind in ("random1", "worse")}
    chosen = [
        np.random.default_rng(0).permutation(len(inputs))[:size]
        for inputs, size in zip((pool_inputs, test_inputs), SIZES[name], strict=True)
    ]
    features = []
    for inputs, rows in zip((pool_inputs, test_inputs), chosen, strict=True):
        if name == "fashion_pixels":
            features.append(inputs[rows].reshape(len(rows), -1) / 255)
        elif isinstance(inputs, np.ndarray):
            features.append(embed_images(inputs[rows], cache / "models").numpy())
        else:
            features.append(embed([inputs[k] for k in rows], cache / "models").numpy())
    arrays = {f"labels_{key}": value[chosen[0]] for key, value in labels.items()}
    np.savez(
        cache / f"{name}.npz",
        pool=features[0].astype(np.float32),
        test=features[1].astype(np.float32),
        test_labels=test_labels[chosen[1]],
        **arrays,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--only", choices=list(SIZES), nargs="+", default=list(SIZES), help="these data sets only")
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if not (options.cache / f"{name}.npz").exists():
            store(name, options.data, options.cache)
        print(f"{name}: {options.cache / name}.npz", flush=True)


if __name__ == "__main__":
    main()
