"""Which number a label has: the model's own ``label2id`` decides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..inputs.text import listed, quote
from .checks import IGNORED
from .columns import is_text
from .errors import DataError

# What transformers calls a class that has no name.
_NUMBERED = re.compile(r"LABEL_\d+")


def names_in_order(label2id: Mapping[Any, int] | None) -> list[str] | None:
    """Return the names of a model's classes in the order of their numbers, or None if they have no order.

    Args:
        label2id: of the model's configuration.

    Examples:
        >>> names_in_order({"pos": 1, "neg": 0}), names_in_order({"pos": 1})
        (['neg', 'pos'], None)
    """
    numbers = {int(number): str(name).strip() for name, number in (label2id or {}).items()}
    return [numbers[k] for k in range(len(numbers))] if {*numbers} == {*range(len(numbers))} else None


def as_the_model_has_them(
    names: Sequence[str], label2id: Mapping[Any, int] | None, *, keeps_others: bool = True
) -> list[str]:
    """Return the classes of the data in the order of a model that knows them all, else in their own.

    Args:
        names: the classes of the data.
        label2id: of the model's configuration.
        keeps_others: whether classes of the model that the data does not have are kept.

    Examples:
        >>> as_the_model_has_them(["neg", "pos"], {"pos": 0, "neg": 1})
        ['pos', 'neg']
        >>> as_the_model_has_them(["neg", "pos"], {"LABEL_0": 0, "LABEL_1": 1})
        ['neg', 'pos']
    """
    of_model = names_in_order(label2id)
    if of_model is None or not {*names} <= {*of_model} or (len(of_model) > len(names) and not keeps_others):
        return [*names]
    return of_model


def number_of_label(label2id: Mapping[Any, int], data: Any, column: str) -> Any:
    """Return a function from a label to the model's number of the class.

    ``label2id`` decides, by the name that the data has for a label or else by the label itself. Whole numbers are
    numbers of classes only if none of them, and none of their names, is in ``label2id``.

    Args:
        label2id: of the model's configuration.
        data: a `datasets.Dataset`.
        column: its column of labels.

    Raises:
        DataError: a label is not in ``label2id``; the message names the label.
    """
    numbers = {str(name).strip(): int(number) for name, number in label2id.items()}
    feature = data.features[column]
    names = getattr(feature, "names", None)
    texts = {
        label: str(names[label] if names and label >= 0 else label).strip()
        for label in data.unique(column)
        if label != IGNORED
    }
    unknown = [label for label, text in texts.items() if text not in numbers]
    if unknown and (is_text(feature) or len(unknown) < len(texts)):
        label = quote(texts[unknown[0]] if names else unknown[0])
        remedy = ": correct it, or leave out its rows."
        if all(_NUMBERED.fullmatch(name) for name in numbers):
            remedy = (
                f". The model has no names for its classes: use the labels 0 to {len(numbers) - 1}, or write the names "
                "into id2label and label2id of its config.json."
            )
        raise DataError(
            f"label {label} in column {quote(column)} is not one of the model's classes ({listed(numbers)}){remedy}"
        )
    return int if unknown else lambda label: numbers[texts[label]] if label in texts else label
