"""The model's label2id decides what a label means, for train, predict, compare and measure alike."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from hf_fam.cli import main as cli
from support.languages import sentence, tiny_tokenizer
from support.tiny_recipes import SIZES

# The order of the model is not the alphabet's.
ORDERS = {"names": ["pos", "neg", "mixed"], "numbers": ["3", "1", "2"], "unsorted": ["2", "10", "1"]}


def saved(folder: Path, names: list[str], always: int, kind: Any = BertForSequenceClassification) -> str:
    """A model that always says one class."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
    model = kind(BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES, **labels))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(5.0 * torch.eye(len(names))[always])
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def table(path: Path, labels: list[str]) -> str:
    rows = [[sentence(k, 4).strip(), label] for k, label in enumerate(labels)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    return str(path)


def evaluated(task: str, folder: Path, **given: Any) -> dict[str, float]:
    """What `hf-fam train` says of the model before any training."""
    usual = {
        "output_dir": folder / "out",
        "cache_dir": folder / "cache",
        "use_cpu": True,
        "do_train": False,
        "disable_tqdm": True,
    }
    words = [f"--{name}={value}" for name, value in {**usual, **given}.items()]
    recipe = importlib.import_module(f"hf_fam.recipes.{task}")
    from hf_fam.recipes import with_defaults

    return recipe.main(with_defaults(task, words))


@pytest.mark.parametrize("order", ORDERS)
def test_train(order: str, tmp_path: Path) -> None:
    """The model says the second class of its own order, which all validation rows have."""
    names = ORDERS[order]
    model = saved(tmp_path / "model", names, always=1)
    files = {
        "train_file": table(tmp_path / "a.csv", names * 4),
        "validation_file": table(tmp_path / "b.csv", [names[1]] * 5),
    }
    found = evaluated("text_classification", tmp_path, model_name_or_path=model, **files)
    assert found["eval_accuracy"] == 1.0
    assert found["eval_nll"] == pytest.approx(float(-torch.log_softmax(5.0 * torch.eye(3)[1], 0)[1]), abs=1e-4)


def test_train_keeps_the_classes_that_the_data_does_not_have(tmp_path: Path) -> None:
    names = ORDERS["names"]
    model = saved(tmp_path / "model", names, always=1)
    files = {
        "train_file": table(tmp_path / "a.csv", names[:2] * 4),
        "validation_file": table(tmp_path / "b.csv", ["neg"] * 5),
    }
    found = evaluated("text_classification", tmp_path, model_name_or_path=model, **files)
    assert found["eval_accuracy"] == 1.0


def test_train_of_words(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", ["X", "O"], always=1, kind=BertForTokenClassification)
    rows = "".join(json.dumps({"tokens": ["w1", "w2"], "ner_tags": tags}) + "\n" for tags in [["O", "X"], ["O", "O"]])
    (tmp_path / "a.jsonl").write_text(rows * 4)
    (tmp_path / "b.jsonl").write_text(json.dumps({"tokens": ["w1", "w2"], "ner_tags": ["O", "O"]}) + "\n")
    files = {
        "train_file": tmp_path / "a.jsonl",
        "validation_file": tmp_path / "b.jsonl",
        "label_column": "ner_tags",
    }
    found = evaluated("token_classification", tmp_path, model_name_or_path=model, **files)
    assert found["eval_accuracy"] == 1.0


@pytest.mark.parametrize("order", ORDERS)
def test_measure_and_predict(order: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ORDERS[order]
    model, file = saved(tmp_path / "model", names, always=0), table(tmp_path / "a.csv", [names[0]] * 20)
    assert cli.main(["measure", model, "--dataset", file, "--layers", "head", "--json", str(tmp_path / "m.json")]) == 0
    (loss, *_) = [entry["loss"] for entry in losses(json.loads((tmp_path / "m.json").read_text()))]
    assert loss == pytest.approx(float(-torch.log_softmax(5.0 * torch.eye(3)[0], 0)[0]), abs=1e-4)
    capsys.readouterr()
    assert cli.main(["predict", model, file]) == 0
    rows = [*csv.DictReader(capsys.readouterr().out.splitlines())]
    assert {row["class"] for row in rows} == {names[0]}
    probability = float(rows[0][f"probability_{names[0]}"])
    assert probability == pytest.approx(float(torch.softmax(5.0 * torch.eye(3)[0], 0)[0]), abs=1e-5)


def losses(value: Any) -> list[dict[str, Any]]:
    """All objects with a loss, at any depth."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value] if isinstance(value, dict) and "loss" in value else []
    return here + [entry for item in inside for entry in losses(item)]


@pytest.mark.parametrize("order", ORDERS)
def test_compare(order: str, tmp_path: Path) -> None:
    """The Trainers that a comparison makes have the model's order."""
    from hf_fam.recipes import with_defaults
    from hf_fam.recipes.common.comparison import RecipeTrainers

    names = ORDERS[order]
    model = saved(tmp_path / "model", names, always=2)
    words = [f"--model_name_or_path={model}", f"--train_file={table(tmp_path / 'a.csv', names * 4)}", "--use_cpu",
             f"--output_dir={tmp_path}/out", f"--test_file={table(tmp_path / 'b.csv', [names[2]] * 5)}"]  # fmt: skip
    words = tuple(with_defaults("text_classification", words))
    trainers = RecipeTrainers("text_classification", words, ("plain",))
    found = trainers(0).evaluate(trainers.test_dataset())
    assert found["eval_accuracy"] == 1.0


def test_labels_with_spaces_are_no_classes_of_their_own(tmp_path: Path) -> None:
    """`"billing "` made a sixth class of three."""
    from hf_fam.recipes import text_classification, with_defaults

    model = saved(tmp_path / "model", ["a", "b"], always=0)
    file = table(tmp_path / "a.csv", ["billing", "billing ", " card", "card"] * 5)
    words = [f"--model_name_or_path={model}", f"--train_file={file}", f"--output_dir={tmp_path / 'out'}", "--use_cpu"]
    run = text_classification.make_run(with_defaults("text_classification", words))
    assert run.summary is not None and run.summary.classes == {"billing": 9, "card": 9}
    assert run.model.config.id2label == {0: "billing", 1: "card"}
