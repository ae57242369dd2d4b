"""Folders: of tables, of images, or as `Dataset.save_to_disk` wrote them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..inputs.text import first_line, quote
from .errors import DataError
from .images import has_images, read_image_folder
from .splits import TEST, TRAIN, VALIDATION
from .tables import READERS, read_table

if TYPE_CHECKING:
    from datasets import Dataset

# Words in the names of files and folders, with the split that they mean.
_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}


def read_folder(folder: str | Path, encoding: str | None = None) -> dict[str, Dataset]:
    """Return the splits of a folder.

    Args:
        folder: a folder of tables with the split in their names, such as ``train.csv``. A table without such a word is
            ``train``. Or a folder of images, with one folder for each class, or with the folders ``train``,
            ``validation`` and ``test`` that contain those. Or a folder that ``save_to_disk`` wrote.
        encoding: encoding of text files; UTF-8 by default.

    Returns:
        The data sets by the name of the split.

    Raises:
        DataError: there is no data, or a file is broken; the message names the file inside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such folder.")
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _read_saved(folder)
    tables = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS and path.is_file())
    if has_images(folder):
        return _read_images(folder)
    if not tables:
        raise DataError(f"the folder contains no images and none of {', '.join('*' + ending for ending in READERS)}.")
    parts: dict[str, list[Dataset]] = {}
    for path in tables:
        parts.setdefault(split_of(path.relative_to(folder)), []).append(_read_part(path, folder, encoding))
    return {split: _joined(split, parts[split]) for split in (TRAIN, VALIDATION, TEST) if split in parts}


def split_of(path: Path) -> str:
    """Return the split that the name of a file or of one of its folders means.

    Examples:
        >>> split_of(Path("train.csv")), split_of(Path("dev-00000.parquet")), split_of(Path("reviews.csv"))
        ('train', 'validation', 'train')
    """
    words = (word for part in (path.stem, *reversed(path.parts[:-1])) for word in re.split(r"[^a-z]+", part.lower()))
    return next((_WORDS[word] for word in words if word in _WORDS), TRAIN)


def _read_part(path: Path, folder: Path, encoding: str | None) -> Dataset:
    try:
        return read_table(path, encoding)
    except DataError as error:
        raise DataError(f"{quote(str(path.relative_to(folder)))}: {error}") from error


def _joined(split: str, parts: list[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    try:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(
            f"the files of the {split} data have different columns or types: give them the same."
        ) from error


def _read_images(folder: Path) -> dict[str, Dataset]:
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    splits = {_WORDS.get(path.name.lower(), ""): path for path in inside}
    if TRAIN not in splits or "" in splits:
        return {TRAIN: read_image_folder(folder)}
    read = {}
    for split, path in splits.items():
        try:
            read[split] = read_image_folder(path, needs_labels=split != TEST)
        except DataError as error:
            raise DataError(f"{quote(path.name)}: {error}") from error
    return read


def _read_saved(folder: Path) -> dict[str, Dataset]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # of many kinds, of a damaged folder
        raise DataError(f"the data set that was saved here cannot be read: {first_line(error)}") from error
    return dict(saved) if isinstance(saved, DatasetDict) else {str(saved.split or TRAIN): saved}
