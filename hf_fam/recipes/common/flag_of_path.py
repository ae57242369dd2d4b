"""The flag of `hf-fam train` that a path is for, for messages about paths in other places."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ...data.endings import TABLES


def is_saved_model(path: str) -> bool:
    """Return True for a folder with a saved model."""
    return os.path.isfile(os.path.join(path, "config.json"))


def flag_of_path(path: str) -> str | None:
    """Return the flag that takes a saved model, a file of data or a folder of data, or None for another path.

    Args:
        path: the path. A file need not exist.

    Examples:
        >>> flag_of_path("reviews.csv"), flag_of_path("mine.yaml")
        ('--train_file', None)
    """
    if is_saved_model(path):
        return "--model_name_or_path"
    if os.path.isdir(path):
        names: list[str] = []
        with contextlib.suppress(OSError):  # it cannot be read
            names = os.listdir(path)
        return "--data_dir" if any(_is_table(name) for name in names) else "--train_dir"
    return "--train_file" if _is_table(path) else None


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in TABLES
