"""Data by one name: a file, a folder, or a data set on the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..inputs.text import first_line, quote
from .errors import DataError
from .folders import read_folder
from .splits import TRAIN
from .tables import read_table


def read_source(source: str, config: str | None = None, encoding: str | None = None) -> Any:
    """Return the data of a file or folder, or of the Hub if there is none of that name here.

    Args:
        source: the name.
        config: configuration of a data set on the Hub.
        encoding: encoding of text files; UTF-8 by default.

    Returns:
        The data sets by split, or a data set.

    Raises:
        DataError: the data cannot be found or read.
    """
    if os.path.isdir(source):
        return read_folder(source, encoding)
    if os.path.exists(source):
        return {TRAIN: read_table(source, encoding)}
    import datasets

    try:
        return datasets.load_dataset(source, config)
    except Exception as error:  # of many kinds, from an unreachable Hub to a broken archive
        reason = first_line(error.__cause__ or error)
        raise DataError(f"it is no file or folder here, and cannot be loaded from the Hub: {reason}") from error


def choose_split(data: Any, split: str | None, preferred: tuple[str, ...] = (TRAIN,)) -> tuple[Any, str]:
    """Return one split of the data, and its name.

    Args:
        data: what `read_source` returns.
        split: its name; None for the only one, or the first preferred one that there is.
        preferred: names.

    Raises:
        DataError: there is no such split, or it is empty, or one has to be chosen.
    """
    if not isinstance(data, Mapping):
        if split not in (None, str(data.split)):
            raise DataError(f"the data has no splits: leave out --split {quote(split)}.")
        chosen, name = data, str(data.split or "all")
    else:
        names = list(data)
        guess = next((p for p in preferred if p in names), names[0] if len(names) == 1 else "")
        name = split or guess
        if name not in names:
            problem = (
                f"there is no split {quote(split)}"
                if split
                else f"the data has several splits and none is {quote(preferred[0])}"
            )
            raise DataError(f"{problem}: choose --split {' | '.join(map(quote, names))}.")
        chosen = data[name]
    if len(chosen) == 0:
        raise DataError(f"split {quote(name)} is empty: there is no item.")
    return chosen, name
