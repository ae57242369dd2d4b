"""Data from the Hub or from files, with splits for training, validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from ...measure.columns import TABLE_FORMATS, first_empty_row, label_columns, table_format
from ...measure.data import IGNORED
from ...measure.model_config import first_line
from .arguments import DataArguments, ModelArguments

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Labels of GLUE's test splits, which are hidden, and empty places.
NO_LABEL = (None, -1)


def load_splits(data: DataArguments, model_args: ModelArguments, seed: int) -> DatasetDict:
    """Load the splits for training and validation, and for test if there is such data.

    Args:
        data: names of the data set, the folder or the files.
        model_args: its cache_dir, for data that is downloaded or converted, and its token are used.
        seed: seed for the selection of samples, and for the split if there is no validation data.

    Raises:
        ValueError: no data is named; a file or split is missing, empty or broken; a file has an unknown format.
    """
    cache_dir = model_args.cache_dir
    paths = {TRAIN: data.train_file, VALIDATION: data.validation_file, TEST: data.test_file}
    files = {split: file for split, file in paths.items() if file is not None}
    if not (data.dataset_name or data.data_dir or TRAIN in files):
        raise ValueError("give dataset_name (on the Hub), data_dir, or train_file (and validation_file, test_file).")
    if data.data_dir:
        splits = read(f"data_dir={data.data_dir!r}", data.data_dir, cache_dir=cache_dir)
    elif data.dataset_name:
        named = f"dataset_name={data.dataset_name!r}"
        options = {"cache_dir": cache_dir, "token": model_args.token}
        splits = read(named, data.dataset_name, data.dataset_config_name, **options)
        for split, name in data.hub_split_names().items():
            if name not in splits:
                raise ValueError(f"{split} data: '{data.dataset_name}' has no split {name!r} but {', '.join(splits)}.")
            splits[split] = splits[name]
    else:
        builder, format_options = common_format(files)
        named = ", ".join(f"{split}_file={file!r}" for split, file in files.items())
        splits = read(named, builder, data_files=files, cache_dir=cache_dir, **format_options)
    return select_samples(splits, data, seed)


def read(named: str, *args: Any, **kwargs: Any) -> DatasetDict:
    """Return what ``load_dataset`` reads.

    Args:
        named: the argument that names the data, and its value.
        *args: arguments of ``load_dataset``.
        **kwargs: arguments of ``load_dataset``.

    Raises:
        ValueError: the data cannot be read, or has no rows.
    """
    try:
        return load_dataset(*args, **kwargs)
    except Exception as error:  # of many kinds, from an unreachable Hub to a broken archive
        if "corresponds to no data" in str(error):
            raise ValueError(f"{named}: there are no rows.") from error
        raise ValueError(f"{named}: the data cannot be read: {first_line(error.__cause__ or error)}") from error


def common_format(files: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the builder of `datasets` that reads all of some files, and its options.

    Args:
        files: path by split.

    Raises:
        ValueError: a file is missing, its format is unknown, or the formats differ.
    """
    for split, file in files.items():
        if not Path(file).is_file():
            raise ValueError(f"{split}_file={file!r}: there is no such file.")
        if Path(file).stat().st_size == 0:
            raise ValueError(f"{split}_file={file!r}: the file is empty.")
    formats = [table_format(file) for file in files.values()]
    first = formats[0]
    if first is None or any(other != first for other in formats):
        endings = ", ".join(dict.fromkeys(Path(file).suffix for file in files.values()))
        raise ValueError(f"files that end in {endings}: give files of one kind ({', '.join(TABLE_FORMATS)}).")
    return first


def select_samples(splits: DatasetDict, data: DataArguments, seed: int) -> DatasetDict:
    """Split validation data off if there is none, and keep at most as many samples as allowed.

    Samples for training and validation are chosen at random, because data is often sorted by class. The test split
    keeps its first samples.

    Raises:
        ValueError: there is no training data, or train_val_split is not between 0 and 1.
    """
    if TRAIN not in splits:
        present = ", ".join(map(repr, splits))
        raise ValueError(f"the data has no split '{TRAIN}' but {present}: give train_file as well.")
    if VALIDATION not in splits and not data.is_whole:
        if not 0 < data.train_val_split < 1:
            raise ValueError(f"train_val_split={data.train_val_split!r}: give a fraction between 0 and 1.")
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
        ValueError: one of the splits has no such column.
    """
    for split in (TRAIN, VALIDATION):
        if name not in splits[split].column_names:
            present = ", ".join(map(repr, splits[split].column_names))
            raise ValueError(f"{argument}={name!r}: the {split} data has no such column but {present}.")
    return name


def label_column(splits: DatasetDict, name: str | None) -> str:
    """Return the column of the labels.

    Args:
        splits: the data.
        name: the column; None for the first one that looks like it.

    Raises:
        ValueError: the training or validation data has no such column.
    """
    guesses = [name] if name else label_columns(splits[TRAIN].features)
    return require_column(splits, guesses[0] if guesses else "label", "label_column_name")


def class_names(splits: DatasetDict, column: str) -> list[str]:
    """Return the classes in order: as declared by the data, or all values of the training data, sorted.

    Raises:
        ValueError: there is only one class, or one that the training data does not have.
    """
    feature: Any = splits[TRAIN].features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = sorted({*splits[TRAIN][column]})
    if len(values) < 2:
        raise ValueError(f"column '{column}' has {len(values)} class in the training data; at least two are needed.")
    unknown = {*splits[VALIDATION][column]} - {*values}
    if unknown:
        raise ValueError(f"column '{column}': the validation data has classes without training data: {sorted(unknown)}")
    return [str(value) for value in values]


def require_values(splits: DatasetDict, column: str) -> None:
    """Refuse a column with an empty place; splits without the column pass.

    Raises:
        ValueError: a value is missing; the message says in which row of which split.
    """
    for name, split in splits.items():
        row = first_empty_row(split, column) if column in split.column_names else None
        if row is not None:
            raise ValueError(f"column '{column}' is empty in row {row} of the {name} data: fill it, or remove the row.")


def has_labels(split: Dataset, column: str) -> bool:
    """Return True if any row has a label."""
    return column in split.column_names and any(value not in NO_LABEL for value in split[column])


def class_number(names: list[str], feature: Any, value: Any) -> int:
    """Return the number of a class, or -100 for a missing label, which the loss leaves out.

    Args:
        names: the classes in order.
        feature: type of the column, an entry of `Dataset.features`.
        value: a label; None is a missing one, and so is -1 if no class is called so.

    Raises:
        ValueError: the label is no class.
    """
    if isinstance(value, float) and value.is_integer():  # whole numbers in a column with empty places
        value = int(value)
    if isinstance(feature, ClassLabel) and value not in NO_LABEL:
        value = feature.int2str(value)
    if str(value) in names and value is not None:
        return names.index(str(value))
    if value in NO_LABEL:
        return IGNORED
    raise ValueError(f"label {value!r} does not occur in the training data, which has {', '.join(names)}.")
