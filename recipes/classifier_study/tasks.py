"""The tasks of the study: how many samples of which data set, with which labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data_sets import TABLES, load
from numpy.typing import NDArray


@dataclass(frozen=True)
class Task:
    """A data set and how much of it is used.

    Attributes:
        data: name of the data set.
        train: training samples, in natural proportions, or
        shots: training samples of each class.
        labels: which labels training and validation samples have.
        noise: share of these that are replaced by another class.
        standardized: whether every feature is brought to mean 0 and variance 1.
        validation: validation samples, at most.
    """

    data: str
    train: int = 0
    shots: int = 0
    labels: str = "right"
    noise: float = 0.0
    standardized: bool = False
    validation: int = 300

    @property
    def name(self) -> str:
        size = f"{self.shots} a class" if self.shots else f"{self.train:,}"
        labels = self.labels if self.labels != "right" else f"{self.noise:.0%} wrong" if self.noise else "right"
        return f"{self.data}, {size}, {labels}" + (", standardized" if self.standardized else "")


@dataclass(frozen=True)
class Sample:
    """Training, validation and test features, each of shape (n, m), with their labels."""

    train: tuple[NDArray[np.float64], NDArray[np.int64]]
    validation: tuple[NDArray[np.float64], NDArray[np.int64]]
    test: tuple[NDArray[np.float64], NDArray[np.int64]]


CHOICE = (
    Task("cifar10", 200),
    Task("cifar10", 1000),
    Task("cifar10", 1000, labels="random1"),
    Task("cifar10", 1000, labels="worse"),
    Task("ag_news", 400),
    Task("ag_news", 400, labels="people"),
    *(Task("digits", 300, noise=share, standardized=True) for share in (0, 0.2)),
    *(Task("wine", 60, noise=share, standardized=True, validation=40) for share in (0, 0.2)),
    *(Task("breast_cancer", 150, noise=share, standardized=True, validation=100) for share in (0, 0.2)),
)
CONFIRMATION = (
    *(Task("banking77", shots=5, noise=share) for share in (0, 0.2)),
    Task("banking77", shots=20),
    *(Task("fashion_mnist", 1000, noise=share) for share in (0, 0.2, 0.6)),
    Task("fashion_pixels", 1000),
    *(Task("sst2", 200, noise=share) for share in (0, 0.2)),
    Task("cola", 1000),
)
# New data: samples, label sets, layers and tables that no earlier part has used. Features are standardized.
PROMISE = tuple(
    Task(data, standardized=True, **settings)
    for data, several in {
        "cifar10_fresh": [
            {"train": 400},
            {"train": 400, "labels": "random2"},
            {"train": 800, "labels": "random3"},
            {"train": 400, "labels": "worse"},
        ],
        "cifar10_earlier": [{"train": 700, "noise": share} for share in (0, 0.2, 0.4)],
        "fashion_earlier": [{"train": 700, "noise": share} for share in (0, 0.2, 0.4)],
        "banking77_first": [{"shots": 10}, {"shots": 10, "noise": 0.2}],
        "sst2_first": [{"train": 500, "noise": share} for share in (0, 0.2, 0.4)],
        "mrpc": [{"train": 300}, {"train": 2000}],
        "rte": [{"train": 600}],
        "iris": [{"train": 60, "noise": share, "validation": 40} for share in (0, 0.2)],
    }.items()
    for settings in several
)


def draw(task: Task, cache: Path, seed: int) -> Sample:
    """Return the samples of a task for a seed."""
    data, random = load(task.data, cache), np.random.default_rng(seed)
    labels = data.labels[task.labels].astype(np.int64)
    order = random.permutation(len(labels))
    if task.shots:
        chosen = np.zeros(len(order), dtype=bool)
        for label in np.unique(labels):
            chosen[np.flatnonzero(labels[order] == label)[: task.shots]] = True
    else:
        chosen = np.arange(len(order)) < task.train
    train, rest = order[chosen], order[~chosen]
    validation, left = rest[: task.validation], rest[task.validation :]
    if task.data in TABLES:
        test, test_labels = data.pool[left], data.labels["right"][left]
    else:
        test, test_labels = data.test, data.test_labels
    given = with_noise(labels, np.concatenate([train, validation]), task.noise, random)
    parts = data.pool[train], data.pool[validation], test
    if task.standardized:
        mean, deviation = parts[0].mean(0), parts[0].std(0)
        deviation[deviation == 0] = 1
        parts = tuple((part - mean) / deviation for part in parts)
    return Sample((parts[0], given[train]), (parts[1], given[validation]), (parts[2], test_labels))


def with_noise(
    labels: NDArray[np.int64], rows: NDArray[np.int64], share: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return labels, some of these rows with another class instead."""
    noisy, classes = labels.copy(), labels.max() + 1
    wrong = random.permutation(rows)[: round(share * len(rows))]
    noisy[wrong] = (noisy[wrong] + random.integers(1, classes, len(wrong))) % classes
    return noisy


@dataclass(frozen=True)
class Synthetic:
    """Gaussian classes whose features have variances that fall as 1 / k.

    Attributes:
        classes: number of classes.
        shots: training samples of each class.
        width: number of features.
        noise: share of training and validation labels that are replaced.
        standardized: whether features have one variance; else the first is a hundred times as large as it would be.
    """

    classes: int = 10
    shots: int = 50
    width: int = 512
    noise: float = 0.2
    standardized: bool = False

    @property
    def name(self) -> str:
        scale = "standardized" if self.standardized else "raw"
        return (
            f"{self.classes} classes, {self.shots:,} a class, {self.width:,} features, {self.noise:.0%} wrong, {scale}"
        )


# One factor at a time.
EXTENT = (
    Synthetic(),
    *(Synthetic(classes=k) for k in (2, 30)),
    Synthetic(classes=100, shots=10),
    *(Synthetic(shots=k) for k in (5, 500)),
    Synthetic(classes=2, shots=5000),
    *(Synthetic(width=k) for k in (64, 4096)),
    *(Synthetic(noise=share) for share in (0, 0.4, 0.6)),
    Synthetic(standardized=True),
)
# The part of it that takes seconds, with more numbers of samples; run first.
SMALL_EXTENT = (
    *(Synthetic(noise=share) for share in (0, 0.2, 0.4, 0.6)),
    *(Synthetic(shots=k) for k in (5, 15, 150)),
    Synthetic(classes=2),
    Synthetic(width=64),
    Synthetic(standardized=True),
)


def draw_synthetic(task: Synthetic, seed: int) -> Sample:
    """Return the samples of a synthetic task for a seed, 300 for validation and 2,000 for the test."""
    random = np.random.default_rng((seed, task.classes, task.width))
    deviations = np.arange(1, task.width + 1) ** -0.5
    means = 0.5 * random.normal(size=(task.classes, task.width)) * deviations
    scales = np.ones(task.width) if not task.standardized else 1 / np.sqrt(1.25) / deviations
    parts = []
    for size, share in ((task.classes * task.shots, task.noise), (300, task.noise), (2000, 0.0)):
        labels = np.arange(size) % task.classes
        features = (means[labels] + random.normal(size=(size, task.width)) * deviations) * scales
        if not task.standardized:
            features[:, 0] *= 10
        parts.append((features, with_noise(labels, np.arange(size), share, random)))
    return Sample(*parts)
