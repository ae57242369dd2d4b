"""What is printed before and behind a training; that it changes nothing; and rows with empty places."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from hf_fam.cli import main as cli
from hf_fam.recipes.common.expected_time import as_duration
from hf_fam.recipes.common.summary import describe_classes
from hf_fam.recipes.common.training import EXAMPLES, where_the_model_is
from support.languages import sentence, tiny_tokenizer
from support.tiny_recipes import SIZES, encoder, image_folders, vision_model


def table(path: Path, labels: list[str], empty: tuple[int, ...] = ()) -> str:
    rows = [["" if k in empty else sentence(k, 4).strip(), label] for k, label in enumerate(labels)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["Message", "Category"], *rows])
    return str(path)


def train(task: str, folder: Path, **given: Any) -> int:
    usual = {"output_dir": folder / "out", "cache_dir": folder / "cache", "use_cpu": True, "max_steps": 3,
             "disable_tqdm": True, "save_strategy": "steps", "save_steps": 1}  # fmt: skip
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in {**usual, **given}.items()]
    return cli.main(["train", task, *words])


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "a.csv", ["x"] * 29 + ["y"] * 10 + ["z"])
    out = tmp_path / "out"
    assert train("text_classification", tmp_path, model_name_or_path=encoder(tmp_path / "m"), train_file=file) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("data      train_file='") and printed[0].endswith("a.csv'")
    assert printed[1:4] == [
        "columns   texts in 'Message', labels in 'Category' (guessed; flags: --text_column, --label_column)",
        "rows      36 to train, 4 to validate (split off, the same share of every class)",
        "classes   x 26, y 9, z 1",
    ]
    assert printed[5] == "method    fam, layer classifier, lambda 0.003"
    assert printed[6] == "training  3 steps on cpu, less than a minute"
    assert printed[-3] == f"The model is in {out}. To use it:"
    assert printed[-2].startswith("  hf-fam predict ") and printed[-1].startswith('  python -c "from transformers')
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]  # one is kept


def test_images_of_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = image_folders(tmp_path)
    given = {"train_dir": folders["train_dir"], "validation_dir": folders["validation_dir"], "method": "plain"}
    assert train("image_classification", tmp_path, model_name_or_path=vision_model(tmp_path / "m"), **given) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "train_dir='" in printed[0] and "validation_dir='" in printed[0]
    assert printed[2:4] == ["rows      32 to train, 12 to validate", "classes   cat 16, dog 16"]
    assert printed[5] == "method    plain"


def test_timing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, the weights are those of a training that was not timed, bit for bit."""
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES)).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    given = {"model_name_or_path": tmp_path / "m", "train_file": table(tmp_path / "a.csv", ["x", "y"] * 20)}
    given |= {"learning_rate": 1e-2}
    assert train("text_classification", tmp_path, **given) == 0
    monkeypatch.setattr("hf_fam.recipes.common.announcing.seconds_of_training", lambda trainer: None)
    assert train("text_classification", tmp_path, **given, output_dir=tmp_path / "again") == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_empty_places_are_refused_with_their_number_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "a.csv", ["x", "y"] * 19 + ["", " "], empty=(0, 7, 21))
    given = {"model_name_or_path": encoder(tmp_path / "m"), "train_file": file}
    assert train("text_classification", tmp_path, **given) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "'Message' is empty in row 1 of the train data (3 such places in all)" in said and "--drop_missing" in said
    assert train("text_classification", tmp_path, **given, drop_missing=None) == 0
    printed = capsys.readouterr().out
    assert "rows      31 to train, 4 to validate (split off, the same share of every class); 5 with an empty" in printed


def test_an_encoding_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + "Grüße,schön\nTschüs,übel\n".encode("cp1252") * 10)
    given = {"model_name_or_path": encoder(tmp_path / "m"), "train_file": path}
    assert train("text_classification", tmp_path, **given) == 1
    assert "add --encoding cp1252" in capsys.readouterr().err.splitlines()[-1]
    assert train("text_classification", tmp_path, **given, encoding="cp1252") == 0
    assert "classes   schön 9, übel 9" in capsys.readouterr().out


def test_many_classes_are_summed_up() -> None:
    assert describe_classes({f"c{k}": k + 1 for k in range(77)}) == "77 classes of 1 (c0) to 77 (c76) rows"
    assert describe_classes({f"c{k}": 30 for k in range(77)}) == "77 classes of 30 rows"


def test_durations() -> None:
    assert [as_duration(s) for s in (59, 61, 5399, 7200)] == [
        "less than a minute", "about 2 minutes", "about 90 minutes", "about 2.0 hours"
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["out", "my models/a b", "it's"])
@pytest.mark.parametrize("task", EXAMPLES)
def test_the_lines_that_use_the_model_are_commands(folder: str, task: str) -> None:
    import ast
    import shlex

    _, *lines = where_the_model_is(folder, task).splitlines()
    assert len(lines) == (1 if task == "text-generation" else 2)
    *predict, use = [shlex.split(line) for line in lines]
    assert use[:2] == ["python", "-c"] and folder in [
        node.value for node in ast.walk(ast.parse(use[2])) if isinstance(node, ast.Constant)
    ]
    assert all(words[:3] == ["hf-fam", "predict", folder] for words in predict)
