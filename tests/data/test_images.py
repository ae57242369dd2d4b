"""Folders of images: the classes, and every image is decoded before the training."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from PIL import Image

from hf_fam.data.errors import DataError
from hf_fam.data.folders import read_folder
from hf_fam.data.images import read_image_folder, require_images


def picture(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((64, 48), 50).convert("RGB").save(path, **options)
    return path


def test_classes_are_the_folders(tmp_path: Path) -> None:
    for name in ("cat", "a[1]", "b*", "x::y"):
        picture(tmp_path / name / "deeper" / "1.png")
    data = read_image_folder(tmp_path)
    assert data["label"][:] == ["a[1]", "b*", "cat", "x::y"] and data[0]["image"].size == (64, 48)
    require_images(data, "image")


def test_an_image_outside_the_classes(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"image '1.png' is in no class"):
        read_image_folder(tmp_path)
    assert read_image_folder(tmp_path, needs_labels=False).column_names == ["image"]


def test_splits_are_folders_of_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "cat" / "1.png")
    assert {*read_folder(tmp_path)} == {"train", "validation"}
    picture(tmp_path / "dog" / "1.png")
    assert {*read_folder(tmp_path)["train"]["label"]} == {"train", "val", "dog"}


@pytest.mark.parametrize("left", [0, 10, 200, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_cut_off_images(tmp_path: Path, kind: str, left: float) -> None:
    path = picture(tmp_path / "cat" / f"1.{kind}")
    content = path.read_bytes()
    require_images(read_image_folder(tmp_path), "image")
    path.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(
        DataError, match=rf"column 'image', row 1: image '.*cat/1.{kind}' cannot be read \(.+\): replace"
    ):
        require_images(read_image_folder(tmp_path), "image")
