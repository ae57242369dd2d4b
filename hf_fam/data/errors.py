"""The error of data that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """Data that cannot be used; the message says why, in a sentence.

    Args:
        reason: what is wrong and what to do.
        split: name of the split, if the data has several.
    """

    def __init__(self, reason: str, split: str | None = None) -> None:
        super().__init__(reason)
        self.split = split


@contextmanager
def named_source(name_of: Callable[[str | None], str], kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Put the name of the source in front of every `DataError` of a block.

    Args:
        name_of: returns the name of a split's source, such as ``train_file='a.csv'``.
        kind: class of the error that is raised instead.

    Examples:
        >>> with named_source(lambda split: f"{split}_file='a.csv'"):
        ...     raise DataError("there are no rows.", "train")
        Traceback (most recent call last):
            ...
        ValueError: train_file='a.csv': there are no rows.
    """
    try:
        yield
    except DataError as error:
        raise kind(f"{name_of(error.split)}: {error}") from error
