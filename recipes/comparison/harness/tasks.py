"""Tasks: real data sets, split into training, validation and test by one rule.

Training: of the official training split, in an order drawn from the seed, the first ``shots`` of each class, or the
first ``train``. Validation, on which everything is chosen: the next ``validation`` in that order. Test, which is only
reported: the official test split where it has labels, else the official development split; if ``test`` is given, the
first so many in an order that is the same for every seed. Labels by people, which may be wrong, are for training alone:
validation and test have the right ones.
"""

from __future__ import annotations

import functools
import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_fam.recipes.common.fashion_mnist import TEST, TRAIN, read_images, read_labels

# Tasks whose inputs are images; those of the others are texts.
IMAGES = ("fashion_mnist", "cifar10", "cifar10n_worse", "cifar10n_random1")


@dataclass(frozen=True)
class Task:
    """A data set and how much of it is used.

    Attributes:
        name: a key of ``READERS``.
        shots: training examples of each class, or
        train: training examples in all, in natural proportions.
        validation: at most so many.
        test: a fixed part of the test split; None: all of it.
        noise: share of training labels that are replaced by another class, drawn evenly; the seed decides which.
        classes: only the first so many classes.
    """

    name: str
    shots: int | None = None
    train: int | None = None
    validation: int = 1000
    test: int | None = None
    noise: float = 0.0
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.name not in READERS:
            raise ValueError(f"task {self.name!r}: choose one of {', '.join(READERS)}.")
        if (self.shots is None) == (self.train is None):
            raise ValueError(f"task {self.name!r}: give either shots (of each class) or train (in all).")

    @property
    def key(self) -> str:
        """Short and unambiguous: the defaults are left out."""
        parts = [f"{self.shots}-shot" if self.shots else f"{self.train}"]
        defaults = Task.__dataclass_fields__
        shown = ("validation", "test", "noise", "classes")
        parts += [f"{k}{v}" for k, v in asdict(self).items() if k in shown and v != defaults[k].default]
        return "-".join([self.name, *parts])

    @property
    def metric(self) -> str:
        return "matthews_correlation" if self.name == "cola" else "accuracy"


@dataclass(frozen=True)
class Examples:
    """Inputs and integer labels.

    Attributes:
        inputs: a list of tuples of sentences, or an array of images.
        labels: the right ones.
        people: labels that people gave, to train with; None: the right ones.
    """

    inputs: Any
    labels: NDArray[np.int64]
    people: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Examples:
        chosen = self.inputs[indices] if isinstance(self.inputs, np.ndarray) else [self.inputs[i] for i in indices]
        return Examples(chosen, self.labels[indices], None if self.people is None else self.people[indices])


@dataclass(frozen=True)
class Split:
    train: Examples
    validation: Examples
    test: Examples
    classes: int


def load(task: Task, data: Path, seed: int) -> Split:
    """The task's examples for one seed."""
    return split(task, *read(task.name, data), seed)


@functools.lru_cache(maxsize=1)
def read(name: str, data: Path) -> tuple[Examples, Examples]:
    """Return a data set; that of the runs under way stays in memory."""
    return READERS[name](data)


def split(task: Task, pool: Examples, test: Examples, seed: int) -> Split:
    """Apply the rule at the top of this file."""
    if task.classes is not None:
        pool, test = (part.take(np.flatnonzero(part.labels < task.classes)) for part in (pool, test))
    order = np.random.default_rng(seed).permutation(len(pool))
    if task.shots is None:
        chosen = np.arange(len(order)) < task.train
    else:
        chosen = np.zeros(len(order), dtype=bool)
        for label in np.unique(pool.labels):
            chosen[np.flatnonzero(pool.labels[order] == label)[: task.shots]] = True
    if task.test is not None:
        test = test.take(np.random.default_rng(0).permutation(len(test))[: task.test])
    classes = int(pool.labels.max()) + 1
    return Split(
        train=with_noise(pool.take(order[chosen]), task.noise, classes, seed),
        validation=pool.take(order[~chosen][: task.validation]),
        test=test,
        classes=classes,
    )


def with_noise(examples: Examples, share: float, classes: int, seed: int) -> Examples:
    """Take the labels by people, if there are any, and replace a share by one of the other classes."""
    random = np.random.default_rng((seed, 1))
    wrong = random.permutation(len(examples))[: round(share * len(examples))]
    labels = (examples.labels if examples.people is None else examples.people).copy()
    labels[wrong] = (labels[wrong] + random.integers(1, classes, len(wrong))) % classes
    return Examples(examples.inputs, labels)


def _texts(folder: str, columns: tuple[str, ...], test: str) -> Any:
    def read(data: Path) -> tuple[Examples, Examples]:
        import pandas

        frames = [pandas.read_parquet(data / folder / f"{name}.parquet") for name in ("train", test)]
        pool, held_out = (
            Examples(list(zip(*(f[c] for c in columns), strict=True)), f["label"].to_numpy(np.int64)) for f in frames
        )
        return pool, held_out

    return read


def _fashion_mnist(data: Path) -> tuple[Examples, Examples]:
    def examples(split: str) -> Examples:
        folder = data / "fashion_mnist"
        return Examples(read_images(folder, split), read_labels(folder, split))

    return examples(TRAIN), examples(TEST)


def _cifar10(data: Path) -> tuple[Examples, Examples]:
    import pandas
    from PIL import Image

    def examples(name: str) -> Examples:
        frame = pandas.read_parquet(data / "cifar10" / f"{name}.parquet")
        images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in frame["image"]]
        return Examples(np.stack(images).transpose(0, 3, 1, 2), frame["label"].to_numpy(np.int64))

    return examples("train-15k"), examples("test")


def _cifar10n(kind: str) -> Any:
    """Return a reader of CIFAR-10 with labels by people (Wei et al. 2022)."""

    def read(data: Path) -> tuple[Examples, Examples]:
        import pandas

        pool, test = _cifar10(data)
        frame = pandas.read_parquet(data / "noisy_labels" / "cifar10n-15k.parquet")
        if not np.array_equal(frame["clean"], pool.labels):
            raise ValueError("cifar10n-15k.parquet: its right labels are not those of cifar10/train-15k.parquet.")
        return replace(pool, people=frame[kind].to_numpy(np.int64)), test

    return read


def _noisy_ag_news(data: Path) -> tuple[Examples, Examples]:
    """AG News with labels by people (NoisyAG-News)."""
    import pandas

    train, test = (
        pandas.read_parquet(data / "noisy_labels" / f"noisy-ag-news-{name}.parquet") for name in ("train", "test")
    )
    texts, labels = ([(text,) for text in frame["text"]] for frame in (train, test)), train["label"]
    pool, held_out = texts
    people = train["noisy_label"].to_numpy(np.int64)
    return Examples(pool, labels.to_numpy(np.int64), people), Examples(held_out, test["label"].to_numpy(np.int64))


READERS = {
    "banking77": _texts("banking77", ("text",), "test"),
    "cola": _texts("glue/cola", ("sentence",), "dev"),
    "sst2": _texts("glue/sst2", ("sentence",), "dev"),
    "mrpc": _texts("glue/mrpc", ("sentence1", "sentence2"), "test"),
    "rte": _texts("glue/rte", ("sentence1", "sentence2"), "dev"),
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar10n_worse": _cifar10n("worse"),
    "cifar10n_random1": _cifar10n("random1"),
    "noisy_ag_news": _noisy_ag_news,
}
