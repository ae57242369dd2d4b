"""File formats and column names of data sets, as `hf-fam train` and `hf-fam measure` guess them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Endings of tables, with the builder of `datasets` that reads them and its options.
TABLE_FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".arrow": ("arrow", {}),
}
IMAGE_FORMATS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}

TEXT_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
TEXT_NAMES = ("text", "sentence", "sentence1", "content", "premise", "question", "review", "utterance", "document")
IMAGE_NAMES = ("image", "img", "pixel_values", "picture")
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "fine_label", "score")


def table_format(file: str | Path) -> tuple[str, dict[str, str]] | None:
    r"""Return the builder of `datasets` that reads a file, and its options.

    Args:
        file: name or path of the file; only its ending counts.

    Returns:
        Arguments for `datasets.load_dataset`, or None if no builder reads such files.

    Examples:
        >>> table_format("reviews.tsv"), table_format("notes.txt")
        (('csv', {'sep': '\t'}), None)
    """
    return TABLE_FORMATS.get(Path(file).suffix.lower())


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


def first_empty_row(data: Any, column: str) -> int | None:
    """Return the number of the first row without a value, counted from 1.

    Args:
        data: a `datasets.Dataset`; the table is searched as it was read, before rows were selected.
        column: name of the column.

    Returns:
        The row, or None if every row has a value.
    """
    values = data.data.column(column)
    return values.is_null().index(True).as_py() + 1 if values.null_count else None


def _present(names: Sequence[str], features: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    return [name for name in names if name in features and name not in without]
