"""Names of columns, as `hf-fam train` and `hf-fam measure` guess them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXT_NAMES = (
    *("text", "texts", "sentence", "sentence1", "content", "premise", "question", "review", "utterance", "document"),
    *("message", "comment", "query", "tweet", "input"),
)
IMAGE_NAMES = ("image", "images", "img", "pixel_values", "picture", "photo", "file_name", "filename", "path")
LABEL_NAMES = (
    *("label", "labels", "target", "class", "category", "intent", "fine_label", "score"),
    *("sentiment", "topic", "rating", "output"),
)


def is_text(feature: Any) -> bool:
    """Return True if a column contains strings.

    Args:
        feature: the type of the column, an entry of `Dataset.features`.
    """
    return getattr(feature, "dtype", None) in ("string", "large_string")


def usual_text_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of the texts, if they have usual names, in whatever case.

    Args:
        columns: names of the columns that may contain texts.

    Returns:
        Two names for pairs of texts, one name for single texts, none if no name is a usual one.

    Examples:
        >>> usual_text_columns(["id", "Premise", "Hypothesis"]), usual_text_columns(["words"])
        (('Premise', 'Hypothesis'), ())
    """
    spelled = _by_usual_name(columns)
    singles = ((name,) for name in TEXT_NAMES)
    usual = next((names for names in (*TEXT_PAIRS, *singles) if set(names) <= {*spelled}), ())
    return tuple(spelled[name] for name in usual)


def other_text_columns(features: Mapping[str, Any]) -> list[str]:
    """Return the columns of strings that are not named like labels.

    Args:
        features: types of the columns by name, `Dataset.features`.
    """
    return [name for name, feature in features.items() if is_text(feature) and _usual(name) not in LABEL_NAMES]


def image_columns(features: Mapping[str, Any]) -> list[str]:
    """Return the columns that may contain the images, the likeliest first.

    Args:
        features: types of the columns by name, `Dataset.features`.

    Returns:
        Columns of type `datasets.Image`, then columns with usual names.
    """
    import datasets

    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return [*typed, *_present(IMAGE_NAMES, features, typed)]


def label_columns(features: Mapping[str, Any]) -> list[str]:
    """Return the columns that may contain the labels, the likeliest first.

    Args:
        features: types of the columns by name, `Dataset.features`.

    Returns:
        Columns with usual names, then columns of type `datasets.ClassLabel`.
    """
    import datasets

    usual = _present(LABEL_NAMES, features, ())
    return [*usual, *(n for n, f in features.items() if isinstance(f, datasets.ClassLabel) and n not in usual)]


def same_column(name: str, columns: Sequence[str]) -> str | None:
    """Return the column that a user means by a name: one of that name, or the only one of that name in another case.

    Examples:
        >>> same_column("label", ["Text", "Label"]), same_column("label", ["LABEL", "Label"])
        ('Label', None)
    """
    if name in columns:
        return name
    alike = [column for column in columns if column.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def _usual(name: str) -> str:
    """Return the name of a column as lists of usual names have it."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _by_usual_name(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns by their usual name; one that is spelled so comes before others."""
    spelled: dict[str, str] = {}
    for column in columns:
        if column == _usual(column) or _usual(column) not in spelled:
            spelled[_usual(column)] = column
    return spelled


def _present(names: Sequence[str], features: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    spelled = _by_usual_name(features)
    return [spelled[name] for name in names if name in spelled and spelled[name] not in without]
