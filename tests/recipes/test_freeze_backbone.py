"""--freeze_backbone: the head is trained on features, the whole model is saved, and plain transformers load it."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, pipeline

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam.recipes import with_defaults
from support.languages import tiny_tokenizer
from support.tiny_recipes import made, typed

TASKS = ("text_classification", "text_regression", "token_classification", "image_classification")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {task: made(task, tmp_path_factory.mktemp(task)) for task in TASKS}


def run(task: str, method: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    arguments = [*typed(task, "fam", {"freeze_backbone": True, **given}), f"--method={method}"]
    monkeypatch.setattr("sys.argv", ["hf-fam", "train", task, *arguments])
    return importlib.import_module(f"hf_fam.recipes.{task}").main(arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def with_pooler(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Flags with a model whose head is one linear layer on a trained pooler, and folders of their own."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return {
        **given,
        "output_dir": folder / "out",
        "cache_dir": folder / "cache",
        "model_name_or_path": folder / "model",
    }


@pytest.mark.parametrize("task", TASKS)
def test_only_the_head_is_trained_and_the_whole_model_is_saved(
    task: str, flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**flags[task], "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out", "learning_rate": 0.1}
    found = run(task, "fam", given, monkeypatch)
    assert (tmp_path / "out" / "README.md").is_file() and "eval_loss" in found
    assert [*(tmp_path / "cache" / "features").glob("*.safetensors")]
    saved = weights(tmp_path / "out")
    first = load_file(Path(flags[task]["model_name_or_path"], "model.safetensors"))
    names = {name: name.removeprefix("bert.").removeprefix("vit.") for name in saved}
    before = {name.removeprefix("bert.").removeprefix("vit."): tensor for name, tensor in first.items()}
    backbone = [name for name, short in names.items() if short in before and "classifier" not in name]
    assert backbone and all(torch.equal(saved[name], before[names[name]]) for name in backbone)
    # A second training reads the features, and is the same.
    again = run(task, "fam", {**given, "output_dir": tmp_path / "again"}, monkeypatch)
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights(tmp_path / "again").items())
    timed = ("runtime", "per_second", "time")
    assert {k: v for k, v in found.items() if not k.endswith(timed)} == {
        k: v for k, v in again.items() if not k.endswith(timed)
    }


def test_the_saved_model_predicts_as_its_evaluation_said(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = with_pooler(flags["text_classification"], tmp_path)
    found = run("text_classification", "flat_logistic_regression", given, monkeypatch)
    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    with open(given["validation_file"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    pairs = [{"text": row["sentence1"], "text_pair": row["sentence2"]} for row in rows]
    predicted = [row["label"] for row in classify(pairs)]
    hits = sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(rows)
    assert hits == pytest.approx(found["eval_accuracy"])


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("flat_logistic_regression", ["FlatLogisticRegression of hf_fam", "smoothing ε: 0.1", "chosen by cross-valid"]),
        ("logistic_regression", ["LogisticRegression of scikit-learn", "C: 1"]),
    ],
)
def test_the_card_of_a_fitted_head_describes_the_fit(
    method: str, lines: list[str], flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = with_pooler(flags["text_classification"], tmp_path)
    run("text_classification", method, given, monkeypatch)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with open(given["train_file"], encoding="utf-8") as file:
        samples = len([*csv.DictReader(file)])
    features = load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"].shape[1]
    lines = [*lines, f"method: {method}\n", f"training samples: {samples}\n", f"features: {features}, of the frozen"]
    assert [line for line in lines if line not in card] == []
    assert f"--method={method}" in card, "the command that repeats the fit"
    steps = ("learning_rate", "ADAM", "epochs", "batch_size", "lr_scheduler", "hyperparameters")
    assert [word for word in steps if word in card.partition("## The command")[0]] == []


def test_the_card_names_a_method_that_is_not_fam(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**flags["text_classification"], "output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache"}
    run("text_classification", "sam", {**given, "sam_rho": 0.2}, monkeypatch)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- method: sam, sam_rho 0.2\n" in card and "- learning_rate: " in card


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("causal_lm", {}, "no head of its own"),
        ("text_classification", {"from_scratch": True}, "random features"),
        ("image_classification", {"augmentation": "flip"}, "features are computed once, so choose none"),
        ("text_classification", {"method": "neftune"}, "no effect on a frozen backbone"),
    ],
)
def test_what_cannot_be_frozen_is_refused(
    task: str,
    given: dict[str, Any],
    message: str,
    flags: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = made(task, tmp_path / "made") if task not in flags else flags[task]
    method = given.pop("method", "fam")
    with pytest.raises(ValueError, match=message):
        run(task, method, {**known, **given, "output_dir": tmp_path / "out", "cache_dir": tmp_path}, monkeypatch)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_frozen_heads_have_defaults_of_their_own() -> None:
    plain = with_defaults("image_classification", ["--seed", "1"])
    frozen = with_defaults("image_classification", ["--freeze-backbone", "--seed", "1"])
    assert plain[1:] == ["--seed", "1"] and frozen[-3:] == ["--freeze-backbone", "--seed", "1"]
    assert {"--augmentation=none", "--method=flat_logistic_regression"} <= {*frozen}
    assert "--method=flat_logistic_regression" not in with_defaults("text_regression", ["--freeze_backbone"])
