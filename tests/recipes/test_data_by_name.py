"""Data sets by their names on the Hub, from look-alikes with the same parts and columns; and data in folders."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from huggingface_hub import ModelCard

from hf_fam.recipes.image_classification import HUB_DATASETS
from support import look_alikes
from support.tiny_recipes import SHORT, encoder, image_folders, text_files, typed, vision_model

ONE_STEP = {**SHORT, "max_steps": 1, "per_device_train_batch_size": 8, "fam_lambda": 0.1}


def some(names: Iterable[str], fast: Sequence[str]) -> list[Any]:
    """All names, of which most are left to the slow tests."""
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"text": encoder(folder / "text"), "image": vision_model(folder / "image")}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.recipes.common.data.load_dataset", look_alikes.load_dataset)


def run(recipe: str, given: dict[str, Any]) -> dict[str, float]:
    return importlib.import_module(f"hf_fam.recipes.{recipe}").main(typed(recipe, "fam", {**ONE_STEP, **given}))


def classes(folder: Path) -> list[str]:
    return list(json.loads((folder / "config.json").read_text())["id2label"].values())


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("task", some(look_alikes.GLUE, fast=("mnli", "stsb")))
def test_glue(models: dict[str, str], tmp_path: Path, task: str) -> None:
    given = {"model_name_or_path": models["text"], "task_name": task, "output_dir": tmp_path, "do_predict": True}
    found = run("text_classification", given)
    assert len(classes(tmp_path)) == {"mnli": 3, "stsb": 1}.get(task, 2)
    assert ("eval_pearson" in found) == (task == "stsb") != ("eval_accuracy" in found)
    assert not any(name.startswith("predict_acc") for name in found)  # the labels are hidden
    written = {path.name for path in tmp_path.glob("*_results.txt")}
    more = {"predict_mm_results.txt"} if task == "mnli" else set()
    assert written == {"predict_results.txt", *more}
    for name in written:
        head, *lines = (tmp_path / name).read_text().splitlines()
        assert head == "index\tprediction" and len(lines) == look_alikes.ROWS
        label = lines[0].split("\t")[1]
        assert float(label) == float(label) if task == "stsb" else label in classes(tmp_path)
    assert ("eval_mm_nll" in found) == (task == "mnli")
    (result, *_) = ModelCard.load(tmp_path / "README.md").data.eval_results
    shown = (result.dataset_name, result.dataset_type, result.dataset_config)
    assert shown == (f"GLUE {task.upper()}", "nyu-mll/glue", task)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", some(HUB_DATASETS, fast=("cifar100", "fashion-mnist")))
def test_images(models: dict[str, str], tmp_path: Path, name: str) -> None:
    """By the short name, by the one on the Hub, and by what people call FashionMNIST."""
    given = {"model_name_or_path": models["image"], "dataset_name": name, "output_dir": tmp_path, "do_predict": True}
    found = run("image_classification", {**given, "augmentation": "flip_crop_cutout", "ignore_mismatched_sizes": True})
    assert len(classes(tmp_path)) == (100 if "cifar100" in name else 10)
    assert {"eval_nll", "predict_nll"} <= {*found}  # a tenth of the training data validates
    assert found["train_loss"] > 1


@pytest.mark.usefixtures("hub")
def test_columns_that_are_named_win(models: dict[str, str], tmp_path: Path) -> None:
    given = {"model_name_or_path": models["image"], "dataset_name": "cifar100", "label_column": "coarse_label"}
    run("image_classification", {**given, "output_dir": tmp_path, "ignore_mismatched_sizes": True})
    assert len(classes(tmp_path)) == 20


@pytest.mark.usefixtures("hub")
def test_validation_by_another_part(models: dict[str, str], tmp_path: Path) -> None:
    given = {"model_name_or_path": models["image"], "dataset_name": "svhn", "validation_split_name": "test"}
    given["ignore_mismatched_sizes"] = True
    run("image_classification", {**given, "output_dir": tmp_path / "a"})
    with pytest.raises(ValueError, match=r"has no split 'dev' but train, test, extra"):
        run("image_classification", {**given, "output_dir": tmp_path / "b", "validation_split_name": "dev"})


@pytest.mark.usefixtures("hub")
def test_another_number_of_classes(models: dict[str, str], tmp_path: Path) -> None:
    given = {"model_name_or_path": models["image"], "dataset_name": "svhn", "output_dir": tmp_path}
    with pytest.raises(ValueError, match="not for the 10 classes of the data: add --ignore_mismatched_sizes"):
        run("image_classification", given)


@pytest.mark.parametrize("name", ["val", "validation", ""])
def test_a_folder_of_images(models: dict[str, str], tmp_path: Path, name: str) -> None:
    """With folders of classes in it, or folders of parts that contain those."""
    data = tmp_path / "my_images"
    image_folders(data)
    if name:
        (data / "validation").rename(data / name)
    else:
        data = data / "train"
    given = {"model_name_or_path": models["image"], "data_dir": data, "output_dir": tmp_path / "out"}
    found = run("image_classification", {**given, "cache_dir": tmp_path / "cache"})
    assert classes(tmp_path / "out") == ["cat", "dog"] and "eval_nll" in found
    assert found["eval_samples_per_second"] > 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"on the {data.name} dataset" in text and str(tmp_path) not in text


def test_a_folder_of_tables(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    files = text_files(tmp_path / "data", lambda n: ("yes", "no")[n % 3 == 1])
    given = {"model_name_or_path": models["text"], "data_dir": tmp_path / "data", "do_predict": True}
    found = run("text_classification", {**given, "output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache"})
    assert {"eval_nll", "predict_nll"} <= {*found} and {*classes(tmp_path / "out")} == {"no", "yes"}
    assert len(files) == 3


def test_images_to_predict_without_classes(models: dict[str, str], tmp_path: Path) -> None:
    """A test folder may contain the images themselves."""
    folders = image_folders(tmp_path)
    test = tmp_path / "unknown" / "some"
    shutil.copytree(Path(folders["test_dir"], "cat"), test)
    given = {"model_name_or_path": models["image"], **folders, "test_dir": test.parent, "do_predict": True}
    with pytest.warns(UserWarning, match="test data's 'some' is no class"):
        run("image_classification", {**given, "output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache"})
    assert classes(tmp_path / "out") == ["cat", "dog"]
    lines = (tmp_path / "out" / "predict_results.txt").read_text().splitlines()
    assert {line.split("\t")[1] for line in lines[1:]} <= {"cat", "dog"}


def test_predicting_without_test_data_is_refused_before_training(models: dict[str, str], tmp_path: Path) -> None:
    folders = {k: v for k, v in image_folders(tmp_path).items() if k != "test_dir"}
    given = {"model_name_or_path": models["image"], **folders, "do_predict": True, "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match="no test split; give test_file"):
        run("image_classification", {**given, "cache_dir": tmp_path / "cache"})
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_classes_without_training_images_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    folders = image_folders(tmp_path)
    shutil.copytree(Path(folders["validation_dir"], "cat"), Path(folders["validation_dir"], "bird"))
    given = {"model_name_or_path": models["image"], **folders, "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match="the validation data has the class 'bird', which the training data lacks"):
        run("image_classification", {**given, "cache_dir": tmp_path / "cache"})


def test_few_samples_are_of_all_classes(models: dict[str, str], tmp_path: Path) -> None:
    """Folders are read class by class."""
    given = {"model_name_or_path": models["image"], **image_folders(tmp_path), "output_dir": tmp_path / "out"}
    given |= {"cache_dir": tmp_path / "cache", "max_train_samples": 10, "max_eval_samples": 8}
    found = run("image_classification", given)
    assert found["eval_accuracy"] not in (0, 1)


def test_a_file_with_a_hostile_name(models: dict[str, str], tmp_path: Path) -> None:
    """It stands in the metadata as it is, in the text as text, and in the command as one word."""
    files = text_files(tmp_path, lambda n: n % 2)
    hostile = tmp_path / """a 'b' "c" <script> & {x} | # $(d) `e`.csv"""
    Path(files["train_file"]).rename(hostile)
    given = {"model_name_or_path": models["text"], **files, "train_file": hostile, "output_dir": tmp_path / "out"}
    arguments = typed("text_classification", "fam", {**ONE_STEP, **given, "cache_dir": tmp_path / "cache"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["recipes/text_classification/run.py", *arguments])
        importlib.import_module("hf_fam.recipes.text_classification").main(arguments)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {result.dataset_name for result in card.data.eval_results} == {hostile.name}
    begin = card.text.index("bash\naccelerate launch") + len("bash\n")
    words = shlex.split(card.text[begin : card.text.index("```", card.text.index("disable_tqdm"))])
    assert f"--train_file={hostile.name}" in words
    assert "<script>" not in card.text[: begin - 20]
