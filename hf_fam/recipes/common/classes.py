"""The classes of a recipe's data, and the number of each label."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from ...data.checks import IGNORED
from ...data.errors import DataError
from ...data.labels import as_the_model_has_them
from ...data.splits import TEST, TRAIN, VALIDATION
from ...inputs.text import listed, quote
from ...measure.model_config import load_config
from .arguments import ModelArguments

# Labels of GLUE's test splits, which are hidden, and empty places.
NO_LABEL = (None, -1)


def in_order_of_model(names: list[str], model_args: ModelArguments) -> list[str]:
    """Return the classes as the model's ``label2id`` has them, if it has them all.

    Args:
        names: the classes of the data.
        model_args: name of the model, and how it is loaded. With ``ignore_mismatched_sizes`` a head for more classes
            is replaced.

    Raises:
        ValueError: the model cannot be found.
    """
    if model_args.from_scratch:
        return names
    config = load_config(model_args.model_name_or_path, model_args.hub_options())
    label2id: Mapping[Any, int] | None = getattr(config, "label2id", None)
    return as_the_model_has_them(names, label2id, keeps_others=not model_args.ignore_mismatched_sizes)


def class_names(splits: DatasetDict, column: str) -> list[str]:
    """Return the classes in order: as declared by the data, or all values of the training data, sorted.

    Raises:
        DataError: there is only one class, or the validation data has one that the training data does not have.
    """
    feature: Any = splits[TRAIN].features[column]
    if isinstance(feature, ClassLabel):
        return require_two_classes(feature.names, column)
    names = require_two_classes(present_classes(splits[TRAIN], column), column)
    unknown = [name for name in present_classes(splits[VALIDATION], column) if name not in names]
    if unknown:  # of rows that were left out of the training data
        raise no_such_class(unknown[0], names, column, VALIDATION)
    return names


def present_classes(split: Dataset, column: str) -> list[str]:
    """Return the classes of a split, sorted: numbers as numbers, names without the spaces around them."""
    found = split.unique(column)
    values = {value.strip() if isinstance(value, str) else value for value in found if value is not None}
    return [str(value) for value in sorted(values)]


def classes_of_rows(split: Dataset, column: str) -> list[str]:
    """Return the name of each row's class."""
    feature = split.features[column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    return [str(names[value] if names else value).strip() for value in split[column]]


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


def refuse_unknown_classes(splits: DatasetDict, column: str, but: Sequence[str] = ()) -> None:
    """Refuse rows of a class that the training data does not have. Call it on all rows, as they were read.

    Args:
        splits: the data.
        column: column of the labels, or of lists of labels. Declared classes pass.
        but: beginnings of the names of splits that may have other classes.

    Raises:
        DataError: names the first row and its class.
    """
    feature = splits[TRAIN].features[column]
    if isinstance(feature, ClassLabel) or isinstance(getattr(feature, "feature", None), ClassLabel):
        return
    known = {_class_name(value) for row in splits[TRAIN][column] for value in _values(row)}
    for split, rows in splits.items():
        if split == TRAIN or split.startswith(tuple(but)) or column not in rows.column_names:
            continue
        for number, row in enumerate(rows[column], start=1):
            unknown = next((v for v in _values(row) if v not in NO_LABEL and _class_name(v) not in known), None)
            if unknown is not None:
                raise no_such_class(unknown, sorted(known), column, split, f"row {number} of ")


def no_such_class(value: Any, names: Sequence[str], column: str, split: str, row: str = "") -> DataError:
    """Return the error about a label that the training data does not have.

    Args:
        value: the label.
        names: the classes of the training data.
        column: column of the labels.
        split: the split with the label.
        row: the row, in front of the split.
    """
    return DataError(
        f"column {quote(column)}: {row}the {split} data has the class {quote(_class_name(value))}, which the training "
        f"data lacks. Correct it, or add rows of this class to the training data, which has {listed(names, 80)}.",
        split,
    )


def _values(row: Any) -> Sequence[Any]:
    """Return the labels of a row, which may be a list of them."""
    return row if isinstance(row, list) else [row]


def _class_name(value: Any) -> str:
    """Return a label as the name of a class; whole numbers are floats in a column with empty places."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


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
    if isinstance(feature, ClassLabel) and value not in NO_LABEL:
        value = feature.int2str(int(value))
    if value is not None and _class_name(value) in names:
        return names.index(_class_name(value))
    if value in NO_LABEL:
        return IGNORED
    raise no_such_class(value, names, "label", TEST)
