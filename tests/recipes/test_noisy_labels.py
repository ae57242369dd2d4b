"""CIFAR-10N and NoisyAG-News through the recipes, from the files as their authors publish them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from support.tiny_recipes import SHORT, encoder, typed, vision_model

pytest.importorskip("datasets")

ROOT = Path(__file__).parents[2]
FOLDERS = [folder / "shared" / "data" for folder in ROOT.parents]
DATA = next(filter(Path.exists, FOLDERS), FOLDERS[0])
needs_data = pytest.mark.skipif(not (DATA / "noisy_labels").exists(), reason="shared/data/noisy_labels is not there")
SETTINGS = {**SHORT, "max_steps": 1, "per_device_train_batch_size": 8, "fam_lambda": 0.1, "do_predict": True}


@pytest.fixture
def cifar10n(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "image_classification"))
    monkeypatch.delitem(sys.modules, "cifar10n", raising=False)
    return importlib.import_module("cifar10n")


def images(size: int) -> pandas.DataFrame:
    """Of classes 0 to 9 in turn."""
    return pandas.DataFrame(
        {"idx": np.arange(size), "image": [{"bytes": b"", "path": None}] * size, "label": np.arange(size) % 10}
    )


def test_the_original_file_is_read_without_running_its_code(cifar10n: Any, tmp_path: Path) -> None:
    images(20).to_parquet(tmp_path / "images.parquet")
    people = np.roll(np.arange(20) % 10, 1)
    torch.save({"clean_label": np.arange(20) % 10, "worse_label": people}, tmp_path / "CIFAR-10_human.pt")
    options = [f"--{part}_images={tmp_path / 'images.parquet'}" for part in ("train", "test")]
    cifar10n.main([str(tmp_path / "CIFAR-10_human.pt"), str(tmp_path / "out"), *options])
    found = {part: pandas.read_parquet(tmp_path / "out" / f"{part}.parquet").label for part in ("train", "test")}
    assert list(found["train"]) == [cifar10n.CLASSES[k] for k in people]
    assert list(found["test"]) == list(cifar10n.CLASSES) * 2


def test_labels_of_other_images_are_refused(cifar10n: Any, tmp_path: Path) -> None:
    images(20).to_parquet(tmp_path / "images.parquet")
    torch.save({"clean_label": np.zeros(20, int), "worse_label": np.zeros(20, int)}, tmp_path / "labels.pt")
    options = [f"--{part}_images={tmp_path / 'images.parquet'}" for part in ("train", "test")]
    with pytest.raises(SystemExit, match="in their original order"):
        cifar10n.main([str(tmp_path / "labels.pt"), str(tmp_path / "out"), *options])


@needs_data
def test_cifar10n(cifar10n: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, name in (("train", "train-15k"), ("test", "test")):
        pandas.read_parquet(DATA / "cifar10" / f"{name}.parquet")[:200].to_parquet(tmp_path / f"{part}.parquet")
    options = [f"--{part}_images={tmp_path / part}.parquet" for part in ("train", "test")]
    cifar10n.main([str(DATA / "noisy_labels" / "cifar10n-15k.parquet"), str(tmp_path / "out"), *options])
    assert "200 training images" in capsys.readouterr().out
    given = {
        "model_name_or_path": vision_model(tmp_path / "model"),
        "train_file": tmp_path / "out" / "train.parquet",
        "test_file": tmp_path / "out" / "test.parquet",
        "ignore_mismatched_sizes": True,
        "output_dir": tmp_path / "trained",
    }
    recipe = importlib.import_module("hf_fam.recipes.image_classification")
    found = recipe.main(typed("image_classification", "fam", {**SETTINGS, **given}))
    assert np.isfinite(found["predict_nll"])


@needs_data
def test_noisy_ag_news(tmp_path: Path) -> None:
    """The authors' files have the labels by people as label, the right ones as gt; both agree in the test file."""
    for part in ("train", "test"):
        table = pandas.read_parquet(DATA / "noisy_labels" / f"noisy-ag-news-{part}.parquet")[:100]
        people = table.get("noisy_label", table.label)
        rows = pandas.DataFrame({"label": people, "gt": table.label, "text": table.text, "group": "A"})
        rows.to_csv(tmp_path / f"{part}.csv", index=False)
    given = {
        "model_name_or_path": encoder(tmp_path / "model"),
        "train_file": tmp_path / "train.csv",
        "test_file": tmp_path / "test.csv",
        "output_dir": tmp_path / "trained",
    }
    recipe = importlib.import_module("hf_fam.recipes.text_classification")
    found = recipe.main(typed("text_classification", "fam", {**SETTINGS, **given}))
    assert np.isfinite(found["predict_nll"])
