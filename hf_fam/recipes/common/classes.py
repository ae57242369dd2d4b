"""The classes of a recipe's data, and the number of each label."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from ...data.checks import IGNORED
from ...data.errors import DataError
from ...data.labels import as_the_model_has_them
from ...data.splits import TEST, TRAIN, VALIDATION
from ...inputs.text import quote
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
    refuse_unknown_classes(present_classes(splits[VALIDATION], column), names, column, VALIDATION)
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
