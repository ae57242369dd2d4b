"""Data from the Hub or from files, with splits for training, validation and test."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from ...data.checks import IGNORED
from ...data.columns import label_columns
from ...data.errors import DataError
from ...data.folders import read_folder
from ...data.splits import TEST, TRAIN, VALIDATION
from ...data.tables import read_table
from ...inputs.text import first_line, quote
from .arguments import DataArguments, ModelArguments

# Labels of GLUE's test splits, which are hidden, and empty places.
NO_LABEL = (None, -1)


def load_splits(data: DataArguments, model_args: ModelArguments, seed: int) -> DatasetDict:
    """Load the splits for training and validation, and for test if there is such data.

    Args:
        data: names of the data set, the folder or the files.
        model_args: its cache_dir and its token are used for data from the Hub.
        seed: seed for the selection of samples, and for the split if there is no validation data.

    Raises:
        ValueError: no data is named.
        DataError: a file or split is missing, empty or broken; a file has an unknown format.
    """
    files = data.files()
    if not (data.dataset_name or data.data_dir or TRAIN in files):
        raise ValueError("give dataset_name (on the Hub), data_dir, or train_file (and validation_file, test_file).")
    if data.data_dir:
        splits = DatasetDict(read_folder(data.data_dir))
    elif data.dataset_name:
        splits = read_from_hub(data, model_args)
    else:
        splits = DatasetDict({split: read_split(file, split) for split, file in files.items()})
    return select_samples(splits, data, seed)


def read_split(file: str, split: str, read: Callable[[str], Dataset] = read_table) -> Dataset:
    """Return the rows of a file or folder; its errors name the split."""
    try:
        return read(file)
    except DataError as error:
        raise DataError(str(error), split) from error


def read_from_hub(data: DataArguments, model_args: ModelArguments) -> DatasetDict:
    """Return the splits of a data set on the Hub.

    Raises:
        DataError: the data cannot be read, or has no such split.
    """
    options = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    try:
        splits: DatasetDict = load_dataset(data.dataset_name, data.dataset_config_name, **options)
    except Exception as error:  # of many kinds, from an unreachable Hub to a broken archive
        raise DataError(f"the data cannot be read: {first_line(error.__cause__ or error)}") from error
    for split, name in data.hub_split_names().items():
        if name not in splits:
            raise DataError(f"validation_split_name: the data has no split {quote(name)} but {', '.join(splits)}.")
        splits[split] = splits[name]
    return splits


def select_samples(splits: DatasetDict, data: DataArguments, seed: int) -> DatasetDict:
    """Split validation data off if there is none, and keep at most as many samples as allowed.

    Samples for training and validation are chosen at random, because data is often sorted by class. The test split
    keeps its first samples.

    Raises:
        DataError: there is no training data, or not enough to split validation data off.
    """
    if TRAIN not in splits:
        present = ", ".join(map(repr, splits))
        raise DataError(f"the data has no split '{TRAIN}' but {present}: give train_file as well.")
    if VALIDATION not in splits and not data.is_whole:
        count = len(splits[TRAIN])
        if math.ceil(count * data.train_val_split) >= count:
            raise DataError(
                f"train_val_split={data.train_val_split!r} of {count} rows leaves none to train on: give more rows, or "
                "validation data.",
                TRAIN,
            )
        halves = splits[TRAIN].train_test_split(data.train_val_split, seed=seed)
        splits[TRAIN], splits[VALIDATION] = halves["train"], halves["test"]
    limits = {TRAIN: data.max_train_samples, VALIDATION: data.max_eval_samples, TEST: data.max_predict_samples}
    selected = {}
    for split in (*limits, *(name for name in data.hub_split_names() if name not in limits)):
        if split in splits:
            limit = limits[split.split("_")[0]]
            samples = splits[split] if limit is None or split.startswith(TEST) else splits[split].shuffle(seed)
            selected[split] = samples if limit is None else samples.select(range(min(limit, len(samples))))
    data.has_validation = VALIDATION in selected
    selected.setdefault(VALIDATION, selected[TRAIN])
    return DatasetDict(selected)


def require_column(splits: DatasetDict, name: str, argument: str) -> str:
    """Return the name of a column that training and validation data have.

    Args:
        splits: the data.
        name: the column.
        argument: the flag that names the column, for the message.

    Raises:
        DataError: one of the splits has no such column.
    """
    for split in (TRAIN, VALIDATION):
        require_column_of_split(splits, split, name, argument)
    return name


def require_column_of_split(splits: DatasetDict, split: str, name: str, argument: str) -> None:
    """Refuse a split that lacks a column.

    Raises:
        DataError: the split has no such column.
    """
    if name not in splits[split].column_names:
        present = quote(splits[split].column_names, 120).strip("[]")
        raise DataError(f"{argument}={quote(name)}: the {split} data has no such column but {present}.", split)


def label_column(splits: DatasetDict, name: str | None) -> str:
    """Return the column of the labels.

    Args:
        splits: the data.
        name: the column; None for the first one that looks like it.

    Raises:
        DataError: the training or validation data has no such column.
    """
    guesses = [name] if name else label_columns(splits[TRAIN].features)
    return require_column(splits, guesses[0] if guesses else "label", "label_column_name")


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


def class_names(splits: DatasetDict, column: str) -> list[str]:
    """Return the classes in order: as declared by the data, or all values of the training data, sorted.

    Raises:
        DataError: there is only one class, or the validation data has one that the training data does not have.
    """
    feature: Any = splits[TRAIN].features[column]
    if isinstance(feature, ClassLabel):
        return require_two_classes(feature.names, column)
    names = require_two_classes(present_classes(splits[TRAIN], column), column)
    refuse_unknown_classes(present_classes(splits[VALIDATION], column), names, column, VALIDATION)
    return names


def present_classes(split: Dataset, column: str) -> list[str]:
    """Return the classes of a split, sorted: numbers as numbers, names without the spaces around them."""
    found = split.unique(column)
    values = {value.strip() if isinstance(value, str) else value for value in found if value is not None}
    return [str(value) for value in sorted(values)]


def require_two_classes(names: list[str], column: str) -> list[str]:
    """Return the names of the classes, unless there is only one.

    Raises:
        DataError: there are fewer than two.
    """
    if len(names) < 2:
        raise DataError(
            f"column {quote(column)} has {len(names)} class in the training data; at least two are needed.", TRAIN
        )
    return list(names)


def refuse_unknown_classes(present: list[str], names: list[str], column: str, split: str) -> None:
    """Refuse a split with classes that the training data does not have.

    Raises:
        DataError: names the classes.
    """
    unknown = [name for name in present if name not in names]
    if unknown:
        raise DataError(
            f"column {quote(column)}: the {split} data has classes without training data: {quote(unknown)}.", split
        )


def drop_unknown_labels(splits: DatasetDict, column: str, names: list[str]) -> None:
    """Remove the labels of test data with other classes: it is predicted, not measured.

    Args:
        splits: the data; the test split may be changed.
        column: column of the labels.
        names: the classes of the training data.
    """
    feature = splits[TEST].features.get(column) if TEST in splits else None
    if feature is None or isinstance(feature, ClassLabel):
        return
    unknown = [name for name in present_classes(splits[TEST], column) if name not in (*names, "-1")]
    if unknown:
        warnings.warn(
            f"the test data's {', '.join(map(quote, unknown[:5]))} is no class: its images are predicted, not "
            "measured.",
            stacklevel=2,
        )
        splits[TEST] = splits[TEST].remove_columns(column)


def has_labels(split: Dataset, column: str) -> bool:
    """Return True if any row has a label."""
    return column in split.column_names and any(value not in NO_LABEL for value in split.unique(column))


def class_number(names: list[str], feature: Any, value: Any) -> int:
    """Return the number of a class, or -100 for a missing label, which the loss leaves out.

    Args:
        names: the classes in order.
        feature: type of the column, an entry of `Dataset.features`.
        value: a label; None is a missing one, and so is -1 if no class is called so.

    Raises:
        DataError: the label is no class.
    """
    if isinstance(value, float) and value.is_integer():  # whole numbers in a column with empty places
        value = int(value)
    if isinstance(feature, ClassLabel) and value not in NO_LABEL:
        value = feature.int2str(value)
    if value is not None and str(value).strip() in names:
        return names.index(str(value).strip())
    if value in NO_LABEL:
        return IGNORED
    raise DataError(f"label {quote(value)} does not occur in the training data, which has {quote(names, 100)}.", TEST)


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
