"""Names of columns, as `hf-fam train` and `hf-fam measure` guess them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TEXT_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
TEXT_NAMES = ("text", "sentence", "sentence1", "content", "premise", "question", "review", "utterance", "document")
IMAGE_NAMES = ("image", "img", "pixel_values", "picture")
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "fine_label", "score")


def is_text(feature: Any) -> bool:
    """Return True if a column contains strings.

    Args:
        feature: the type of the column, an entry of `Dataset.features`.
    """
    return getattr(feature, "dtype", None) in ("string", "large_string")


def usual_text_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of the texts, if they have usual names.

    Args:
        columns: names of the columns that may contain texts.

    Returns:
        Two names for pairs of texts, one name for single texts, none if no name is a usual one.

    Examples:
        >>> usual_text_columns(["id", "premise", "hypothesis"]), usual_text_columns(["body"])
        (('premise', 'hypothesis'), ())
    """
    present = {*columns}
    singles = ((name,) for name in TEXT_NAMES)
    return next((names for names in (*TEXT_PAIRS, *singles) if present.issuperset(names)), ())


def other_text_columns(features: Mapping[str, Any]) -> list[str]:
    """Return the columns of strings that are not named like labels.

    Args:
        features: types of the columns by name, `Dataset.features`.
    """
    return [name for name, feature in features.items() if is_text(feature) and name not in LABEL_NAMES]


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


def _present(names: Sequence[str], features: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    return [name for name in names if name in features and name not in without]
