"""Data from the Hub or from files, with splits for training, validation and test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from ...data.checks import without_missing
from ...data.columns import label_columns, same_column
from ...data.errors import DataError
from ...data.folders import read_folder
from ...data.splits import TEST, TRAIN, VALIDATION
from ...data.tables import read_table
from ...inputs.text import did_you_mean, first_line, listed, quote
from .arguments import DataArguments, ModelArguments


def load_splits(data: DataArguments, model_args: ModelArguments) -> DatasetDict:
    """Load the splits as they are: training data, and validation and test data if there are such.

    Args:
        data: names of the data set, the folder or the files.
        model_args: its cache_dir and its token are used for data from the Hub.

    Raises:
        ValueError: no data is named.
        DataError: a file or split is missing, empty or broken; a file has an unknown format.
    """
    files = data.files()
    if not (data.dataset_name or data.data_dir or TRAIN in files):
        raise ValueError("give dataset_name (on the Hub), data_dir, or train_file (and validation_file, test_file).")
    if data.data_dir:
        splits = DatasetDict(read_folder(data.data_dir, data.encoding))
    elif data.dataset_name:
        splits = read_from_hub(data, model_args)
    else:
        read = functools.partial(read_table, encoding=data.encoding)
        splits = DatasetDict({split: read_split(file, split, read) for split, file in files.items()})
    if TRAIN not in splits:
        present = ", ".join(map(repr, splits))
        raise DataError(f"the data has no split '{TRAIN}' but {present}: give train_file as well.")
    used = (TRAIN, VALIDATION, TEST, *data.hub_split_names())
    return DatasetDict({split: splits[split] for split in dict.fromkeys(used) if split in splits})


def read_split(file: str, split: str, read: Callable[[str], Dataset] = read_table) -> Dataset:
    """Return the rows of a file or folder; its errors name the split."""
    try:
        return read(file)
    except DataError as error:
        raise DataError(str(error), split) from error


def read_from_hub(data: DataArguments, model_args: ModelArguments) -> DatasetDict:
    """Return the splits of a data set on the Hub.

    Raises:
        ValueError: the data cannot be read.
        DataError: it has no such split.
    """
    options = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    try:
        splits: DatasetDict = load_dataset(data.dataset_name, data.dataset_config_name, **options)
    except Exception as error:  # of many kinds, from an unreachable Hub to a broken archive
        raise ValueError(
            "--train_file (--train_dir for images) takes data of your own; "
            f"{data.source_of(None)} cannot be read: {first_line(error.__cause__ or error)}"
        ) from error
    for split, name in data.hub_split_names().items():
        if name not in splits:
            raise DataError(f"validation_split_name: the data has no split {quote(name)} but {', '.join(splits)}.")
        splits[split] = splits[name]
    return splits


def find_column(splits: DatasetDict, name: str) -> str:
    """Return the name of a column as the training data spells it; the name itself if it has none like it."""
    return same_column(name, splits[TRAIN].column_names) or name


def require_column(splits: DatasetDict, name: str, argument: str) -> str:
    """Return the name of a column that training and validation data have.

    Args:
        splits: the data.
        name: the column.
        argument: the flag that names the column, for the message.

    Raises:
        DataError: one of the splits has no such column.
    """
    name = find_column(splits, name)
    for split in (TRAIN, VALIDATION):
        if split in splits:
            require_column_of_split(splits, split, name, argument)
    return name


def require_column_of_split(splits: DatasetDict, split: str, name: str, argument: str) -> None:
    """Refuse a split that lacks a column.

    Raises:
        DataError: the split has no such column.
    """
    if name not in splits[split].column_names:
        present = listed(splits[split].column_names)
        near = did_you_mean(name, splits[split].column_names) or "."
        raise DataError(f"{argument}={quote(name)}: the {split} data has no such column but {present}{near}", split)


def label_column(splits: DatasetDict, name: str | None) -> str:
    """Return the column of the labels.

    Args:
        splits: the data.
        name: the column; None for the first one that looks like it.

    Raises:
        DataError: the training or validation data has no such column.
    """
    guesses = [name] if name else label_columns(splits[TRAIN].features)
    if not guesses:
        present = listed(splits[TRAIN].column_names)
        raise DataError(f"no column of labels among {present}: name it with label_column.", TRAIN)
    return require_column(splits, guesses[0], "label_column")


def drop_missing(splits: DatasetDict, data: DataArguments, inputs: Sequence[str], label: str | None) -> DatasetDict:
    """Return the splits without the rows that have an empty place, if ``drop_missing`` is set.

    Rows of test data need no label.

    Args:
        splits: the data, as it was read.
        data: its ``dropped_rows`` gets the number of rows that were left out, by split.
        inputs: columns of the inputs.
        label: column of the labels, or None.

    Raises:
        DataError: no row of a split is left.
    """
    if not data.drop_missing:
        return splits
    kept = {}
    for name, split in splits.items():
        columns = [*inputs, *([] if label is None or name.startswith(TEST) else [label])]
        try:
            kept[name], data.dropped_rows[name] = without_missing(split, columns)
        except DataError as error:
            raise DataError(str(error), name) from error
    return DatasetDict(kept)


def check_splits(splits: DatasetDict, check: Callable[..., None], *columns: str) -> None:
    """Apply a check of `hf_fam.data` to the columns of every split.

    Args:
        splits: the data.
        check: called with a split's data, the columns and the split's name.
        *columns: the columns.
    """
    for name, split in splits.items():
        check(split, *columns, name)


def check_labels(splits: DatasetDict, label: str, check: Callable[..., None]) -> None:
    """Apply `require_classes` or `require_numbers` to the labels; test data needs none."""
    for name, split in splits.items():
        if label in split.column_names:
            check(split, label, name, needs_values=not name.startswith(TEST))


def prepare_splits(splits: DatasetDict, prepare: Callable[[str], Callable[..., Any]], **options: Any) -> DatasetDict:
    """Return every split with what a function makes of its rows.

    Args:
        splits: the data.
        prepare: returns the function for a split, by its name.
        **options: arguments of `Dataset.map`.

    Raises:
        DataError: the function fails on a row.
    """
    prepared = {}
    for name, split in splits.items():
        try:
            prepared[name] = split.map(prepare(name), remove_columns=split.column_names, **options)
        except DataError:
            raise
        except Exception as error:  # of tokenizers and chat templates
            raise DataError(f"the {name} data cannot be prepared: {first_line(error)}", name) from error
    return DatasetDict(prepared)
