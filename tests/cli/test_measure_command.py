"""``hf-fam measure``: sources, guesses, sentences for what is wrong, and the page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import OrderedDict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_fam import measure_relative_flatness
from hf_fam.cli import main as cli
from hf_fam.measure.class_predictions import Predictions
from hf_fam.measure.findings import MeasuredModel
from hf_fam.measure.report import html_report
from hf_fam.measure.robustness import feature_robustness
from hf_fam.measure.sources import SourceError, load_source
from support.measured import cross_entropy, mlp, points
from support.tiny import fam_trainer, tiny_bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very"]
NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bert = tiny_bert(vocab_size=len(WORDS))
    bert.config.id2label = {0: "neg", 1: "neutral", 2: "pos"}
    bert.config.label2id = {"neg": 0, "neutral": 1, "pos": 2}
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def reviews(path: Path, count: int = 24, text: str = "review") -> Path:
    labels = ("neg", "neutral", "pos")
    rows = [{text: " ".join(WORDS[5 : 6 + k % 4]), "label": labels[k % 3], NASTY: "x"} for k in range(count)]
    return table(path / "data.csv", rows)


class Page(HTMLParser):
    """Tags, and the addresses that they load from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for k, v in attributes if k in ("src", "href")]


def test_a_report_from_a_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, page, numbers = reviews(tmp_path), tmp_path / "report.html", tmp_path / "out.json"
    command = ["measure", str(model), "--dataset", str(data), "--report", str(page), "--json", str(numbers)]
    assert cli.main([*command, "--batch_size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "bert.pooler.dense" in printed
    accuracy = re.search(r"^The model is right on [\d.]+ % of 24 items, with a mean loss of [\d.]+\.", printed, re.M)
    assert accuracy and accuracy[0] in page.read_text(encoding="utf-8")
    layers = json.loads(numbers.read_text())["layers"]
    assert [r["num_items"] for r in layers] == [24, 24] and len(layers[0]["item_kappas"]) == 24
    seen = Page(page.read_text(encoding="utf-8"))
    assert seen.tags.count("svg") == 5 and not seen.sources
    text = page.read_text(encoding="utf-8")
    assert text.index("What this says") < text.index("<svg") < text.index("The formula") and "hf-fam measure" in text


def test_hostile_names_are_escaped() -> None:
    """Of model, data, settings, command and notes; of layers, in table, figures' descriptions and the curve's title."""
    model, data = nn.Sequential(OrderedDict(zip(["0", "1", NASTY, "3", "4"], mlp(), strict=True))), points(10)
    result = measure_relative_flatness(model, data, NASTY, loss_fn=cross_entropy)
    assert result[0].layer == NASTY
    curve = feature_robustness(model, data, NASTY, (0.1,), samples=2, loss_fn=cross_entropy)
    predictions = Predictions(np.eye(3), np.array([0, 1, 1]), (NASTY,) * 3)
    page = html_report(
        MeasuredModel(NASTY, result, predictions),
        curve,
        data=f'"{NASTY}',
        settings={NASTY: NASTY},
        command=f"hf-fam {NASTY}",
        second=MeasuredModel(NASTY, result, predictions),
        notes=[NASTY],
    )
    seen = Page(page)
    assert "script" not in seen.tags and NASTY not in page and page.count("&lt;script&gt;") >= 9


@pytest.mark.parametrize(
    ("given", "said"),
    [({"fam_center": True, "fam_smoothing": 0.1}, "with centered features and smoothing 0.1, and fam_kappa"),
     ({"fam_center": True, "fam_smoothing": 0.0}, "with centered features, and fam_kappa"),
     ({"fam_center": False, "fam_smoothing": 0.1}, "with smoothing 0.1, and fam_kappa"),
     ({"fam_center": False, "fam_smoothing": 0.0}, None), ({"fam_center": True, "fam_lambda": 0.0}, None)],
)  # fmt: skip
def test_it_says_that_the_log_has_another_kappa(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, Any], said: str | None
) -> None:
    """A head that was trained with centered features or smoothing, without a checkpoint on the way."""
    other = tmp_path / "trained"
    shutil.copytree(model, other)
    settings = {"fam_layer": "head", "fam_lambda": 0.1, "max_steps": 2, "save_strategy": "no", **given}
    data = [{"input_ids": [5, 7], "labels": 2}] * 8
    trainer = fam_trainer(other, BertForSequenceClassification.from_pretrained(model), train_dataset=data, **settings)
    trainer.train()
    trainer.save_model(str(other))
    trainer.save_state()
    command = ["--dataset", str(reviews(tmp_path)), "--layers", "head", "--measures", "trace"]
    assert cli.main(["measure", str(other), *command]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert notes == [] if said is None else len(notes) == 1 and f"layer 'classifier' {said}" in notes[0]
    page = tmp_path / "page.html"
    more = ["--compare_with", str(other), "--report", str(page), "--no_robustness"]
    assert cli.main(["measure", str(model), *command, *more]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert notes == [] if said is None else len(notes) == 1 and notes[0].startswith(f"Note: {other}: FAM trained")
    assert ("FAM trained layer" in page.read_text(encoding="utf-8")) == (said is not None)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"stateful_callbacks": {"FAM": 3}}',
                                     '{"stateful_callbacks": {"FAM": {"smoothing": {}, "layer": 1}}}'])  # fmt: skip
def test_a_damaged_state_is_no_obstacle(
    model: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "trained"
    shutil.copytree(model, other)
    (other / "trainer_state.json").write_text(content)
    command = ["--dataset", str(reviews(tmp_path)), "--layers", "head", "--measures", "trace"]
    assert cli.main(["measure", str(other), *command]) == 0
    assert "Note: " not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--compare_with", "--compare-with"])
def test_two_models_side_by_side(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    data, page, other = reviews(tmp_path), tmp_path / "report.html", tmp_path / "other"
    shutil.copytree(model, other)
    flat = BertForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        flat.classifier.weight.mul_(0.1)
    flat.save_pretrained(other)
    command = ["measure", str(model), "--dataset", str(data), "--no_robustness"]
    assert cli.main([*command, "--report", str(page), option, str(other)]) == 0
    text = page.read_text(encoding="utf-8")
    assert f"of {other}: this model is sharper there" in text and "Accuracy is" in text and "second model" in text
    assert cli.main([*command, option, str(other)]) == 1
    assert "--compare_with needs --report" in capsys.readouterr().err
    numbers = tmp_path / "numbers.json"
    assert cli.main([*command, option, str(other), "--json", str(numbers)]) == 0
    written = json.loads(numbers.read_text())
    assert written["compared_with"]["model"] == str(other)
    kappas = [[r["kappa"] for r in of["layers"]] for of in (written, written["compared_with"])]
    assert [r["layer"] for r in written["layers"]] == [r["layer"] for r in written["compared_with"]["layers"]]
    head = [r["layer"] for r in written["layers"]].index("classifier")
    assert kappas[1][head] < kappas[0][head] / 10
    # A single file has no split to speak of.
    assert f"Measured on {data}</p>" in text and "split train" not in text


def test_images_in_folders(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    for name, color in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (9, 7), color).save(tmp_path / "data" / "train" / name / f"{k}.png")
    source = load_source(str(folder), str(tmp_path / "data"))
    assert source.columns == {"image": "image", "label": "label"}
    with pytest.raises(
        SourceError, match="--text_column x does not apply here: a ViTForImageClassification takes images"
    ):
        load_source(str(folder), str(tmp_path / "data"), text_column="x")
    batch = source.collate_fn([source.items[0], source.items[7]])
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["labels"].tolist() == [0, 1]
    result = measure_relative_flatness(source.model, source.items, "head", collate_fn=source.collate_fn)
    assert result[0].num_items == 8


def test_selection_pairs_and_string_labels(model: Path, tmp_path: Path) -> None:
    source = load_source(str(model), str(reviews(tmp_path)), items=10)
    assert len(source.items) == 10 and "random selection of 10" in source.notes[0]
    labels = source.collate_fn([source.items[k] for k in range(10)])["labels"]
    assert labels.dtype == torch.int64 and set(labels.tolist()) <= {0, 1, 2}
    rows = [{"premise": "good film", "hypothesis": "bad", "label": "pos"}] * 4
    pairs = load_source(str(model), str(table(tmp_path / "pairs.csv", rows)))
    assert pairs.columns["text"] == "premise, hypothesis"
    assert 1 in pairs.collate_fn([pairs.items[0]])["token_type_ids"]


@pytest.mark.parametrize("kind", ["parquet", "tsv", "jsonl", "folder", "saved"])
def test_every_local_source(model: Path, tmp_path: Path, kind: str) -> None:
    """What pandas and datasets write, and folders with one file a split."""
    frame = pandas.DataFrame({"text": [" ".join(WORDS[5 : 6 + k % 4]) for k in range(9)], "label": [0, 1, 2] * 3})
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "folder":
        path.mkdir()
        frame[:2].to_parquet(path / "train.parquet")
        frame.to_parquet(path / "validation-00000.parquet")
    else:
        datasets.Dataset.from_pandas(frame).save_to_disk(path)
    source = load_source(str(model), str(path), split="validation" if kind == "folder" else None)
    assert source.columns == {"text": "text", "label": "label"} and len(source.items) == 9
    batch = source.collate_fn([source.items[k] for k in range(9)])
    assert batch["labels"].tolist() == [0, 1, 2] * 3 and batch["input_ids"].shape == (9, 6)


def prepared(folder: Path, **columns: list[Any]) -> str:
    """Eight tokenized texts."""
    tokens = [[5, 6, 7 + k % 2] for k in range(8)]
    datasets.Dataset.from_dict({"input_ids": tokens, **columns}).save_to_disk(folder)
    return str(folder)


def test_the_label_column_of_prepared_data(model: Path, tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", label=[0] * 8, stars=[1, 2] * 4, mood=["pos", "neg"] * 4)
    for column, labels in ((None, [0] * 8), ("stars", [1, 2] * 4), ("mood", [2, 0] * 4)):
        source = load_source(str(model), data, label_column=column)
        assert source.columns["label"] == (column or "label")
        batch = source.collate_fn([source.items[k] for k in range(8)])
        assert batch["labels"].tolist() == labels


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label_column": "nope"}, "no column 'nope': the columns are 'input_ids', 'labels'"),
        ({"text_column": "text"}, "--text_column text does not apply here: the data is prepared.*'input_ids'"),
        ({"image_column": "image"}, "--image_column image does not apply here"),
        ({"max_length": 4}, "--max_length 4 does not apply here"),
        ({"max_length": 0}, "--max_length 0: give.*at least 1"),
    ],
)
def test_options_that_prepared_data_has_no_use_for(
    model: Path, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SourceError, match=words):
        load_source(str(model), prepared(tmp_path / "data", labels=[0] * 8), **given)


def test_options_of_texts_and_of_images(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="--image_column x does not apply here: a BertForSequenceClassification takes texts"
    ):
        load_source(str(model), str(reviews(tmp_path)), image_column="x")
    with pytest.raises(SourceError, match="--max_length 0"):
        load_source(str(model), str(reviews(tmp_path)), max_length=0)
    with pytest.raises(SourceError, match=r"--max_length 1000: the model has \d+ positions"):
        load_source(str(model), str(reviews(tmp_path)), max_length=1000)


@pytest.mark.parametrize("column", ["text", "label"])
def test_empty_places(model: Path, tmp_path: Path, column: str) -> None:
    rows = [{"text": "good", "label": "pos", column: "" if k == 2 else "pos"} for k in range(4)]
    with pytest.raises(SourceError, match=f"column '{column}' is empty in row 3"):
        load_source(str(model), str(table(tmp_path / "data.csv", rows)))


def test_a_negative_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["measure", "m", "--dataset", "d", "--seed", "-1"])
    assert "--seed: -1: give" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "foo"], "--device foo cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--json", "{folder}"], "it is a folder"),
        (["--report", "{folder}"], "it is a folder"),
    ],
)
def test_what_is_refused_before_the_work(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is neither a model nor data yet."""
    given = [option.format(folder=tmp_path) for option in options]
    assert cli.main(["measure", "no/such/model", "--dataset", "no/such/data", *given]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", "no/such/model", "--dataset", "no/such/data", "--device", "cuda"]) == 1
    assert "--device cuda cannot be used here" in capsys.readouterr().err


def test_no_labels_and_unknown_tokens(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = prepared(tmp_path / "bare", labels=[-100] * 8)
    beyond = tmp_path / "beyond"
    datasets.Dataset.from_dict({"input_ids": [[5, 99]] * 4, "labels": [0] * 4}).save_to_disk(beyond)
    for data, words in ((bare, "no item has a label"), (beyond, "numbered from 5 to 99")):
        assert cli.main(["measure", str(model), "--dataset", str(data)]) == 1
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text_column": "body"}, "no column 'body'.*'review', 'label'"),
        ({"label_column": "stars"}, "no column 'stars'"),
        ({"split": "dev"}, "no split 'dev'.*train"),
    ],
)
def test_what_is_missing(model: Path, tmp_path: Path, given: dict[str, str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        load_source(str(model), str(reviews(tmp_path)), **given)


@pytest.mark.parametrize(
    ("label2id", "labels", "names", "expected"),
    [
        ({"1": 0, "2": 1, "3": 2}, [1, 3, 2], None, [0, 2, 1]),
        ({"1": 0, "2": 1, "3": 2}, [1, 1, 1], None, [0, 0, 0]),
        ({"2": 0, "1": 1, "0": 2}, [0, 1, 2], None, [2, 1, 0]),
        ({"1": 0, "2": 1, "3": 2}, ["1 ", "3", "2"], None, [0, 2, 1]),
        ({"False": 1, "True": 0, "3": 2}, [True, False, True], None, [0, 1, 0]),
        ({"neg": 0, "neutral": 1, "pos": 2}, [0, 1, 2], ["pos", "neutral", "neg"], [2, 1, 0]),
        ({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, [2, 0, 1], None, [2, 0, 1]),
        ({"neg": 0, "neutral": 1, "pos": 2}, [2, 0, 1], ["a", "b", "c"], [2, 0, 1]),
        ({f"LABEL_{k}": k for k in range(3)}, ["a", "b", "a"], None, "no names for its classes: use the labels 0 to 2"),
        ({"1": 0, "2": 1, "3": 2}, [0, 1, 2], None, "label 0 in column 'label' is not one of the model's classes"),
        ({"1": 0, "2": 1, "3": 2}, ["1", "4", "2"], None, "label '4' in column 'label' is not one"),
        ({"neg": 0, "neutral": 1, "pos": 2}, [0, 1, 2], ["neg", "so", "pos"], "label 'so' in column 'label' is not"),
    ],
)
def test_label2id_decides(
    model: Path, tmp_path: Path, label2id: dict[str, int], labels: list[Any], names: list[str] | None, expected: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"label2id": label2id, "id2label": {number: name for name, number in label2id.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    data = datasets.Dataset.from_dict({"text": ["good"] * 3, "label": labels})
    if names:
        data = data.cast_column("label", datasets.ClassLabel(names=names))
    data.save_to_disk(tmp_path / "data")
    if isinstance(expected, str):
        with pytest.raises(SourceError, match=expected):
            load_source(str(folder), str(tmp_path / "data"))
        return
    source = load_source(str(folder), str(tmp_path / "data"))
    assert source.collate_fn([*source.items])["labels"].tolist() == expected


def test_sentences_of_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = table(tmp_path / "wrong.csv", [{"text": "good", "label": "great"}] * 3)
    numbers = table(tmp_path / "numbers.csv", [{"text": "good", "label": 7}] * 3)
    bare = table(tmp_path / "bare.csv", [{"text": "good"}] * 3)
    for data, words in (
        (wrong, "'great' in column 'label' is not one of the model's classes"),
        (numbers, "outside the classes of the model (num_labels=3)"),
        (bare, "give --label_column"),
        (tmp_path / "missing.csv", "missing.csv': it is no file or folder"),
        (model, "cannot be read|contains no images|json"),
    ):
        assert cli.main(["measure", str(model), "--dataset", str(data)]) == 1
        error = capsys.readouterr().err
        assert any(w in error for w in words.split("|")), error
        assert "Traceback" not in error
    assert cli.main(["measure", "no/such/model", "--dataset", str(bare)]) == 1
    report = tmp_path / "no" / "folder.html"
    assert cli.main(["measure", str(model), "--dataset", str(bare), "--report", str(report)]) == 1
    assert "there is no folder" in capsys.readouterr().err
