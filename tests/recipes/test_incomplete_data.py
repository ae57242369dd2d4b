"""Data with empty places: predicted where only labels are missing, else refused by column and row."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from support.tiny_recipes import SHORT, encoder, made, text_files, typed

ONE_STEP = {**SHORT, "max_steps": 1, "per_device_train_batch_size": 8, "fam_lambda": 0.1}


def run(recipe: str, given: dict[str, Any]) -> dict[str, float]:
    return importlib.import_module(f"hf_fam.recipes.{recipe}").main(typed(recipe, "fam", {**ONE_STEP, **given}))


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    """Flags of a classification by words."""
    files = text_files(tmp_path, lambda n: ("yes", "no")[n % 2])
    folders = {"cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}
    return {"model_name_or_path": encoder(tmp_path / "model"), **files, **folders}


def relabelled(file: str, label: Any) -> None:
    """The labels of a csv file: what ``label`` makes of a row's number, or no such column."""
    rows = [line.rsplit(",", 1)[0] for line in Path(file).read_text().splitlines()]
    if label is not None:
        rows = [f"{row},{'label' if n == 0 else label(n)}" for n, row in enumerate(rows)]
    Path(file).write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("label", [None, lambda n: ""], ids=["no column", "empty"])
def test_predicting_without_labels(texts: dict[str, Any], label: Any) -> None:
    relabelled(texts["test_file"], label)
    found = run("text_classification", {**texts, "do_predict": True})
    assert not [name for name in found if name.startswith("predict_acc")]
    assert len((texts["output_dir"] / "predict_results.txt").read_text().splitlines()) == 1 + 7


@pytest.mark.parametrize("missing", ["", "-1"])
def test_predicting_where_some_labels_are_missing(texts: dict[str, Any], missing: str) -> None:
    for part in ("train", "validation"):
        relabelled(texts[f"{part}_file"], lambda n: n % 2)
    relabelled(texts["test_file"], lambda n: missing if n == 2 else n % 2)
    found = run("text_classification", {**texts, "do_predict": True})
    assert math.isfinite(found["predict_accuracy"]) and math.isfinite(found["predict_loss"])


@pytest.mark.parametrize("labels", [("yes", "no"), (0, 1)])
def test_an_empty_label(texts: dict[str, Any], labels: tuple[Any, Any]) -> None:
    for part in ("train", "validation", "test"):
        relabelled(texts[f"{part}_file"], lambda n: labels[n % 2])
    relabelled(texts["train_file"], lambda n: "" if n == 3 else labels[n % 2])
    with pytest.raises(ValueError, match="column 'label' is empty in row 3 of the train data"):
        run("text_classification", texts)


def test_an_empty_text(texts: dict[str, Any]) -> None:
    rows = Path(texts["train_file"]).read_text().splitlines()
    rows[5] = ",yes"
    Path(texts["train_file"]).write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="column 'text' is empty in row 5 of the train data"):
        run("text_classification", texts)


def test_language_models_refuse_a_validation_without_tokens_to_learn(tmp_path: Path) -> None:
    given = made("causal_lm", tmp_path)
    row = {"prompt": "a " * 40, "completion": "b"}
    Path(given["validation_file"]).write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="no text of the validation data has a token to learn .*max_seq_length=16"):
        run("causal_lm", {**given, "output_dir": tmp_path / "out", "max_seq_length": 16})


def test_an_empty_completion(tmp_path: Path) -> None:
    given = made("causal_lm", tmp_path)
    Path(given["validation_file"]).write_text(json.dumps({"prompt": "a", "completion": None}) + "\n")
    with pytest.raises(ValueError, match="column 'completion' is empty in row 1 of the validation data"):
        run("causal_lm", {**given, "output_dir": tmp_path / "out"})


@pytest.mark.parametrize("recipe", ["text_classification", "token_classification", "causal_lm"])
def test_texts_of_no_length(recipe: str) -> None:
    with pytest.raises(ValueError, match="max_seq_length=0: give"):
        run(recipe, {"model_name_or_path": "m", "output_dir": "out", "max_seq_length": 0})
