"""Features of the study's data sets, computed once and kept: a pool to draw training samples from, and test samples.

    python recipes/classifier_study/data_sets.py --data PATH --cache out/classifier_study/features

PATH is a folder with CIFAR-10, CIFAR-10N, FashionMNIST, noisy AG News, Banking77 and GLUE in parquet files. Images
become the 1,280 features below the head of EfficientNet-Lite0 or the 320 of its last block, texts the 384 features
of all-MiniLM-L6-v2, the mean over tokens or the first token. Both models are frozen and come from packages.
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


@dataclass(frozen=True)
class Source:
    """Which samples of a data set become features, and by what.

    Attributes:
        reader: the data set in files.
        pool: training samples at most.
        test: test samples at most.
        skip: samples to leave out of each, because another entry uses them.
        layer: what is read: the model's last features, an earlier layer, the first token, or the pixels.
    """

    reader: str
    pool: int
    test: int
    skip: tuple[int, int] = (0, 0)
    layer: str = "last"


# Computing features is most of the cost of the study.
SOURCES = {
    "cifar10": Source("cifar10", 6000, 2000),
    "fashion_mnist": Source("fashion_mnist", 4000, 2000),
    "ag_news": Source("ag_news", 5000, 2000),
    "banking77": Source("banking77", 10003, 3080),
    "sst2": Source("sst2", 4000, 872),
    "cola": Source("cola", 4000, 1043),
    "fashion_pixels": Source("fashion_mnist", 20000, 5000, layer="pixels"),
    "cifar10_fresh": Source("cifar10", 5000, 2000, skip=(6000, 2000)),
    "cifar10_earlier": Source("cifar10", 2500, 1500, skip=(11000, 4000), layer="earlier"),
    "fashion_earlier": Source("fashion_mnist", 2500, 1500, skip=(20000, 5000), layer="earlier"),
    "mrpc": Source("mrpc", 3668, 1725),
    "rte": Source("rte", 1200, 277),
    "sst2_first": Source("sst2", 1500, 872, skip=(4000, 0), layer="first"),
    "banking77_first": Source("banking77", 4000, 1500, layer="first"),
}
TABLES = ("digits", "wine", "breast_cancer", "iris")


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

    source = SOURCES[name]
    labels: dict[str, NDArray[np.int64]] = {}
    if name == "ag_news":
        files = [
            pandas.read_parquet(data / "noisy_labels" / f"noisy-ag-news-{part}.parquet") for part in ("train", "test")
        ]
        pool_inputs, test_inputs = ([(text,) for text in file["text"]] for file in files)
        labels = {"right": files[0]["label"].to_numpy(), "people": files[0]["noisy_label"].to_numpy()}
        test_labels = files[1]["label"].to_numpy()
    else:
        pool, test = READERS[source.reader](data)
        pool_inputs, test_inputs, labels["right"], test_labels = pool.inputs, test.inputs, pool.labels, test.labels
        if source.reader == "cifar10":
            people = pandas.read_parquet(data / "noisy_labels" / "cifar10n-15k.parquet")
            labels |= {kind: people[kind].to_numpy() for kind in ("random1", "random2", "random3", "worse")}
    chosen = [
        np.random.default_rng(0).permutation(len(inputs))[first : first + size]
        for inputs, size, first in zip((pool_inputs, test_inputs), (source.pool, source.test), source.skip, strict=True)
    ]
    features = []
    for inputs, rows in zip((pool_inputs, test_inputs), chosen, strict=True):
        if source.layer == "pixels":
            features.append(inputs[rows].reshape(len(rows), -1) / 255)
        elif source.layer == "earlier":
            features.append(earlier_features(inputs[rows]))
        elif isinstance(inputs, np.ndarray):
            features.append(embed_images(inputs[rows], cache / "models").numpy())
        else:
            tokens = "first" if source.layer == "first" else "mean"
            features.append(embed([inputs[k] for k in rows], cache / "models", tokens).numpy())
    arrays = {f"labels_{key}": value[chosen[0]] for key, value in labels.items()}
    np.savez(
        cache / f"{name}.npz",
        pool=features[0].astype(np.float32),
        test=features[1].astype(np.float32),
        test_labels=test_labels[chosen[1]],
        **arrays,
    )


def earlier_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the 320 features of EfficientNet-Lite0's last block, the mean over positions, shape (N, 320)."""
    import torch
    from harness.efficientnet import efficientnet_lite0

    model = efficientnet_lite0(classes=1).eval()
    kept: list[torch.Tensor] = []
    model._blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output.mean((2, 3))))
    with torch.no_grad():
        for first in range(0, len(images), 64):
            model.features(torch.from_numpy(images[first : first + 64]))
    return torch.cat(kept).numpy()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--only", choices=list(SOURCES), nargs="+", default=list(SOURCES), help="these data sets only")
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if not (options.cache / f"{name}.npz").exists():
            store(name, options.data, options.cache)
        print(f"{name}: {options.cache / name}.npz", flush=True)


if __name__ == "__main__":
    main()
