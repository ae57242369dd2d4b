"""The data of the demo: 30 intents of Banking77, with label noise of 20 %."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

DATA = "banking77_30_intents.csv"
WRONG_LABELS = 0.2
# Of the split and of the noise.
SEED = 2026


def read_rows() -> list[dict[str, str]]:
    """Return the rows of the demo's data file.

    Raises:
        ValueError: the installation lacks the file.
    """
    file = resources.files(__package__) / DATA
    if not file.is_file():
        raise ValueError(f"the data of the demo, {DATA}, are missing from this installation: reinstall hf-fam.")
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def write_files(folder: Path, intents: int | None = None) -> tuple[Path, Path]:
    """Write the training data, with label noise, and the test data as csv files.

    Args:
        folder: the folder, which is made.
        intents: number of intents, in alphabetical order; None: all.

    Returns:
        The two files.
    """
    rows = read_rows()
    names = sorted({row["label"] for row in rows})[:intents]
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.csv", folder / "test.csv"
    for file in files:
        part = [row for row in rows if row["split"] == file.stem and row["label"] in names]
        labels = [row["label"] for row in part]
        if file.stem == "train":
            labels = with_wrong_labels(labels, names)
        with open(file, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(("text", "label"))
            writer.writerows(zip((row["text"] for row in part), labels, strict=True))
    return files


def with_wrong_labels(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return labels, a fifth of which are replaced by another one that is drawn uniformly.

    Examples:
        >>> labels = list("ab" * 5)
        >>> sum(a != b for a, b in zip(labels, with_wrong_labels(labels, "abc")))
        2
    """
    random = np.random.default_rng(SEED)
    noisy = list(labels)
    for k in random.permutation(len(labels))[: round(WRONG_LABELS * len(labels))]:
        others = [name for name in names if name != labels[k]]
        noisy[k] = others[random.integers(len(others))]
    return noisy
