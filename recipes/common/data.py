"""Data from the Hub, from files and from folders of images, split into what trains, validates and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from .arguments import DataArguments, ModelArguments
from .metrics import IGNORED

TRAIN, VALIDATION, TEST = "train", "validation", "test"
BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_parts(data: DataArguments, model_args: ModelArguments, seed: int) -> DatasetDict:
    """What trains and validates, and what tests if there is such data.

    Args:
        data: where it is.
        model_args: its cache_dir, for what was downloaded or converted, and token.
        seed: of the split, where no validation data is given.

    Raises:
        ValueError: no data is given; a file or part is missing, or of an unknown kind.
    """
    cache_dir = model_args.cache_dir
    files = {TRAIN: data.train_file, VALIDATION: data.validation_file, TEST: data.test_file}
    given = {part: file for part, file in files.items() if file is not None}
    if not (data.dataset_name or data.data_dir or TRAIN in given):
        raise ValueError("give dataset_name (on the Hub), data_dir, or train_file (and validation_file, test_file).")
    if data.data_dir:
        parts = load_dataset(data.data_dir, cache_dir=cache_dir)
    elif data.dataset_name:
        parts = load_dataset(data.dataset_name, data.dataset_config_name, cache_dir=cache_dir, token=model_args.token)
        for part, name in data.splits().items():
            if name not in parts:
                raise ValueError(f"{part} data: '{data.dataset_name}' has no part {name!r} but {', '.join(parts)}.")
            parts[part] = parts[name]
    else:
        parts = load_dataset(kind_of_files(given), data_files=given, cache_dir=cache_dir)
    return cut(parts, data, seed)


def kind_of_files(files: dict[str, str]) -> str:
    """The builder that reads them all."""
    for part, file in files.items():
        if not Path(file).is_file():
            raise ValueError(f"{part}_file={file!r}: there is no such file.")
    kinds = {Path(file).suffix: BUILDERS.get(Path(file).suffix) for file in files.values()}
    if len({*kinds.values()}) > 1 or None in kinds.values():
        raise ValueError(f"files that end in {', '.join(kinds)}: give files of one kind ({', '.join(BUILDERS)}).")
    return str(next(iter(kinds.values())))


def cut(parts: DatasetDict, data: DataArguments, seed: int) -> DatasetDict:
    """Split validation data off where there is none, and keep as many samples as are asked for.

    What trains and validates is drawn, because data is often sorted by class; what is predicted are the first ones.
    """
    if TRAIN not in parts:
        raise ValueError(f"the data has no part '{TRAIN}' but {', '.join(map(repr, parts))}: give train_file as well.")
    if VALIDATION not in parts:
        if not 0 < data.train_val_split < 1:
            raise ValueError(f"train_val_split={data.train_val_split!r}: give a fraction between 0 and 1.")
        split = parts[TRAIN].train_test_split(data.train_val_split, seed=seed)
        parts[TRAIN], parts[VALIDATION] = split["train"], split["test"]
    limits = {TRAIN: data.max_train_samples, VALIDATION: data.max_eval_samples, TEST: data.max_predict_samples}
    kept = {}
    for part in (*limits, *(name for name in data.splits() if name not in limits)):
        if part in parts:
            limit = limits[part.split("_")[0]]
            drawn = parts[part] if limit is None or part.startswith(TEST) else parts[part].shuffle(seed)
            kept[part] = drawn if limit is None else drawn.select(range(min(limit, len(drawn))))
    return DatasetDict(kept)


def require_column(parts: DatasetDict, name: str, argument: str) -> str:
    """The name, if every part but the test data has such a column."""
    for part in (TRAIN, VALIDATION):
        if name not in parts[part].column_names:
            present = ", ".join(map(repr, parts[part].column_names))
            raise ValueError(f"{argument}={name!r}: the {part} data has no such column but {present}.")
    return name


def class_names(parts: DatasetDict, column: str) -> list[str]:
    """The classes in order: as the data declares them, or all values of the training data, sorted.

    Raises:
        ValueError: only one class, or a class that the training data does not have.
    """
    feature: Any = parts[TRAIN].features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = sorted({*parts[TRAIN][column]})
    if len(values) < 2:
        raise ValueError(f"column '{column}' has {len(values)} class in the training data; at least two are needed.")
    unknown = {*parts[VALIDATION][column]} - {*values}
    if unknown:
        raise ValueError(f"column '{column}': the validation data has classes without training data: {sorted(unknown)}")
    return [str(value) for value in values]


def require_values(parts: DatasetDict, column: str) -> None:
    """Refuse a column with an empty place; what is predicted needs no labels.

    Raises:
        ValueError: a value is missing; the message says in which row of which part.
    """
    for name, part in parts.items():
        values: Any = part.data.column(column) if column in part.column_names else None
        if values is not None and values.null_count:  # of the table as it was read, before rows were drawn
            row = values.is_null().index(True).as_py() + 1
            raise ValueError(f"column '{column}' is empty in row {row} of the {name} data: fill it, or remove the row.")


def has_labels(part: Dataset, column: str) -> bool:
    """Whether any row has one: None and -1, which GLUE gives to labels that it hides, are none."""
    return column in part.column_names and any(value not in (None, -1) for value in part[column])


def class_number(names: list[str], feature: Any, value: Any) -> int:
    """The number of a label; what the loss leaves out for None, and for -1 that is no class."""
    if isinstance(value, float) and value.is_integer():  # whole numbers in a column with empty places
        value = int(value)
    if isinstance(feature, ClassLabel) and value not in (None, -1):
        value = feature.int2str(value)
    if str(value) in names and value is not None:
        return names.index(str(value))
    if value in (None, -1):
        return IGNORED
    raise ValueError(f"label {value!r} does not occur in the training data, which has {', '.join(names)}.")
