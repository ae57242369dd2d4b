"""Folders of images with one folder a class, and the check that every image can be read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs.text import first_line, quote
from .errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_FORMATS = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
IMAGE, LABEL = "image", "label"
# An image is decoded at about this size where its format can, which is enough to find out whether it is whole.
_SMALL = (64, 64)


def is_image(path: Path) -> bool:
    """Return True if a file is an image, by the ending of its name."""
    return path.suffix.lower() in IMAGE_FORMATS


def has_images(folder: Path) -> bool:
    """Return True if a folder contains an image, at any depth."""
    return any(is_image(path) for path in folder.rglob("*"))


def image_files(folder: str | Path) -> list[str]:
    """Return the images of a folder, at any depth, in order of their names."""
    return sorted(str(path) for path in Path(folder).rglob("*") if is_image(path) and path.is_file())


def read_image_folder(folder: str | Path, needs_labels: bool = True) -> Dataset:
    """Return the images of a folder, with the name of their class.

    Args:
        folder: contains one folder for each class, with images at any depth.
        needs_labels: refuse images outside the folders of classes. Otherwise a folder with such images has no labels.

    Returns:
        A data set with the columns ``image`` and ``label``.

    Raises:
        DataError: there are no images, a class has none, or an image is in no class.
    """
    from datasets import Dataset, Features, Image, Value

    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise DataError("there is no such folder.")
    loose = sorted(path for path in folder.iterdir() if is_image(path) and path.is_file())
    if loose and needs_labels:
        raise DataError(f"image {quote(loose[0].name)} is in no class: move it into the folder of its class.")
    if loose:
        return Dataset.from_dict({IMAGE: [*map(str, loose)]}, features=Features({IMAGE: Image()}))
    columns: dict[str, list[str]] = {IMAGE: [], LABEL: []}
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        images = sorted(str(path) for path in class_folder.rglob("*") if is_image(path) and path.is_file())
        is_hidden = class_folder.name.startswith(".")
        if images and is_hidden:
            raise DataError(f"folder {quote(class_folder.name)} begins with a dot: rename it, or remove it.")
        if not images and not is_hidden:
            raise DataError(
                f"folder {quote(class_folder.name)} contains no images ({', '.join(sorted(IMAGE_FORMATS))})."
            )
        columns[IMAGE] += images
        columns[LABEL] += [class_folder.name] * len(images)
    if not columns[IMAGE]:
        raise DataError("there are no images: give a folder with one folder of images for each class.")
    return Dataset.from_dict(columns, features=Features({IMAGE: Image(), LABEL: Value("string")}))


def as_images(data: Any, column: str) -> Any:
    """Return the data with a column of images, which may be paths or bytes so far.

    Raises:
        DataError: the column contains something else.
    """
    from datasets import Image

    if isinstance(data.features[column], Image):
        return data
    try:
        return data.cast_column(column, Image())
    except Exception as error:  # of pyarrow or datasets
        raise DataError(f"column {quote(column)} contains no images: {first_line(error)}") from error


def require_images(data: Any, column: str, split: str | None = None) -> None:
    """Refuse data with an image that cannot be decoded.

    Every image is decoded once, by threads. Rows count as they were read.

    Args:
        data: a `datasets.Dataset`.
        column: its column of type `datasets.Image`.
        split: name of the split, for the message.

    Raises:
        DataError: an image is missing or broken; the message names its row and its file.
    """
    values = data.data.column(column)
    with ThreadPoolExecutor() as pool:
        for number, problem in enumerate(pool.map(_problem, _scalars(values)), 1):
            if problem is not None:
                pool.shutdown(cancel_futures=True)
                raise DataError(f"column {quote(column)}, row {number}: {problem}", split)


def _scalars(values: Any) -> Iterable[Any]:
    return (scalar.as_py() for chunk in values.chunks for scalar in chunk)


def _problem(image: dict[str, Any] | None) -> str | None:
    """Return why an image cannot be read, or None."""
    from PIL import Image

    content, path = (image or {}).get("bytes"), (image or {}).get("path")
    if not content and not path:
        return "the image is missing: fill it, or remove the row."
    name = "the image" if content else f"image {quote(path, 100)}"
    try:
        with Image.open(io.BytesIO(content) if content else str(path)) as opened:
            opened.draft("RGB", _SMALL)
            opened.load()
    except FileNotFoundError:
        return f"{name}: there is no such file."
    except Exception as error:  # of many kinds, of Pillow's formats
        reason = first_line(error).partition(": <")[0].replace(f" {path!r}", "")
        return f"{name} cannot be read ({reason}): replace it, or remove it."
    return None
