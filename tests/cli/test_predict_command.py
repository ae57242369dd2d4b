"""hf-fam predict: what the model itself says of every input, as csv, and one sentence for what cannot be predicted."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")

from PIL import Image
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_fam.cli import main as cli
from support.languages import sentence, tiny_tokenizer
from support.launch import ROOT
from support.tiny_recipes import SIZES, encoder, image_folders, language_model, vision_model

NAMES = {0: "yes", 1: "no, never", 2: "1"}
TEXTS = [sentence(n, 3 + n % 4).strip() for n in range(7)]


def saved(folder: Path, kind: Any = BertForSequenceClassification, **config: Any) -> Any:
    torch.manual_seed(0)
    config = {"id2label": NAMES, "label2id": {name: k for k, name in NAMES.items()}, **config}
    model = kind(BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES, **config)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def predicted(capsys: pytest.CaptureFixture[str], *words: Any) -> list[dict[str, str]]:
    assert cli.main(["predict", *map(str, words)]) == 0
    return [*csv.DictReader(io.StringIO(capsys.readouterr().out))]


def table(path: Path, columns: dict[str, list[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def logits_of(model: Any, *texts: str) -> torch.Tensor:
    """One text, or a pair, alone, in float64."""
    with torch.no_grad():
        return model.double()(**tiny_tokenizer()(*texts, return_tensors="pt")).logits[0]


def test_what_was_read_and_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    right = [NAMES[int(logits_of(model, text).argmax())] for text in TEXTS]
    labels = [*right[:5], *("yes" if name != "yes" else "1" for name in right[5:])]
    file, output = table(tmp_path / "new.csv", {"Message": TEXTS, "label": labels}), tmp_path / "out.csv"
    words = ["predict", str(tmp_path / "model"), str(file), "--output", str(output)]
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert f"Predictions of 7 rows, column 'Message' written to {output}.\n" in said
    assert "Accuracy on the labels of the file: 71.4 %.\n" in said
    assert cli.main(words) == 0
    assert f"written to {output}, which replaces the file that was there.\n" in capsys.readouterr().err
    # Labels of another model are no labels.
    table(tmp_path / "new.csv", {"Message": TEXTS, "label": [*labels[:6], "something else"]})
    assert cli.main(words) == 0 and "Accuracy" not in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int) -> None:
    model = saved(tmp_path / "model")
    file = table(tmp_path / "new.csv", {"id": [*range(7)], "Message": TEXTS}, ";")
    rows = predicted(capsys, tmp_path / "model", file, "--batch_size", batch_size)
    assert [row["input"] for row in rows] == TEXTS
    for row, text in zip(rows, TEXTS, strict=True):
        right = logits_of(model, text).softmax(-1)
        assert row["class"] == NAMES[int(right.argmax())]
        assert [float(row[f"probability_{name}"]) for name in NAMES.values()] == pytest.approx(right.tolist(), abs=2e-5)


def test_pairs_numbers_and_several_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "pairs")
    file = table(tmp_path / "pairs.csv", {"premise": TEXTS[:2], "hypothesis": TEXTS[2:4]})
    first = predicted(capsys, tmp_path / "pairs", file)[0]
    assert (first["input"], first["second_input"]) == (TEXTS[0], TEXTS[2])
    right = logits_of(model, TEXTS[0], TEXTS[2]).softmax(-1)
    assert float(first["probability_yes"]) == pytest.approx(float(right[0]), abs=2e-5)
    number = saved(tmp_path / "number", id2label={0: "score"}, label2id={"score": 0}, problem_type="regression")
    (tmp_path / "a.txt").write_text("\n".join([TEXTS[0], "", TEXTS[1]]) + "\n")
    rows = predicted(capsys, tmp_path / "number", tmp_path / "a.txt")
    assert [*rows[0]] == ["input", "prediction"] and [row["input"] for row in rows] == TEXTS[:2]
    assert float(rows[1]["prediction"]) == pytest.approx(float(logits_of(number, TEXTS[1])), rel=1e-4)
    several = saved(tmp_path / "several", problem_type="multi_label_classification")
    row = predicted(capsys, tmp_path / "several", tmp_path / "a.txt")[0]
    chances = logits_of(several, TEXTS[0]).sigmoid()
    assert row["class"] == "|".join(name for k, name in NAMES.items() if chances[k] >= 0.5)
    assert float(row["probability_1"]) == pytest.approx(float(chances[2]), abs=2e-5)


def test_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", BertForTokenClassification)
    (tmp_path / "new.jsonl").write_text('{"tokens": ["w1", "w2"], "x": 1}\n{"tokens": ["w3"], "x": 2}\n')
    rows = predicted(capsys, tmp_path / "model", tmp_path / "new.jsonl")
    assert [(row["row"], row["input"]) for row in rows] == [("1", "w1"), ("1", "w2"), ("2", "w3")]
    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(
        ["w1", "w2"], is_split_into_words=True, return_tensors="pt"
    )
    with torch.no_grad():
        right = model(**batch).logits[0, batch.word_ids(0).index(1)].softmax(-1)
    assert float(rows[1]["probability_yes"]) == pytest.approx(float(right[0]), abs=2e-5)
    assert rows[1]["class"] == NAMES[int(right.argmax())]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    image_folders(tmp_path)
    vision_model(tmp_path / "vit")
    return tmp_path / "test"


def test_images(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(str(path) for path in photos.rglob("*.png"))
    rows = predicted(capsys, tmp_path / "vit", photos)
    assert [row["input"] for row in rows] == files
    model = ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    processor = ViTImageProcessorPil.from_pretrained(tmp_path / "vit")
    for row in (rows[0], rows[-1]):
        with torch.no_grad():
            pixels = processor(Image.open(row["input"]).convert("RGB"), return_tensors="pt")
            right = model(**pixels).logits[0].softmax(-1)
        assert float(row["probability_LABEL_1"]) == pytest.approx(float(right[1]), abs=2e-5)
    (tmp_path / "list.txt").write_text("\n".join(files[2:4]))
    assert [row["input"] for row in predicted(capsys, tmp_path / "vit", tmp_path / "list.txt")] == files[2:4]
    paths = table(tmp_path / "list.csv", {"file_name": files})
    assert predicted(capsys, tmp_path / "vit", paths) == rows
    assert predicted(capsys, tmp_path / "vit", files[0])[0] == rows[0]


def test_no_training_data_is_looked_for_and_the_file_is_whole(tmp_path: Path) -> None:
    """In a process of its own, in an empty folder, with the output in a file."""
    saved(tmp_path / "model")
    table(tmp_path / "new.csv", {"text": TEXTS})
    command = [sys.executable, "-m", "hf_fam", "predict", "model", "new.csv", "--output", "out.csv"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_offline())
    assert (result.returncode, result.stdout) == (0, "")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"model", "new.csv", "out.csv"}


def _offline() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_long_texts_are_cut_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "model")
    file = table(tmp_path / "new.csv", {"text": ["w1 " * 500, "w2"]})
    assert cli.main(["predict", str(tmp_path / "model"), str(file)]) == 0
    assert "Note: 1 text was cut after 16 tokens; --max_length changes it." in capsys.readouterr().err
    # The tokenizer has the length of the training, and the model has positions for more.
    assert cli.main(["predict", str(tmp_path / "model"), str(file), "--max_length", "20"]) == 0
    assert "cut after 20 tokens" in capsys.readouterr().err


def test_a_folder_of_images_for_a_model_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "model")
    folders = image_folders(tmp_path / "photos")
    for words in (["predict", str(tmp_path / "model"), folders["test_dir"]],
                  ["measure", str(tmp_path / "model"), "--dataset", folders["test_dir"]]):  # fmt: skip
        assert cli.main(words) == 1
        assert "the model takes texts, and the data has images (column 'image')." in capsys.readouterr().err


def test_missing_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "model")
    file = table(tmp_path / "new.csv", {"text": ["w1", "", "w2", " "], "id": [1, 2, 3, 4]})
    assert cli.main(["predict", str(tmp_path / "model"), str(file)]) == 1
    assert "is empty in row 2 (2 such places in all)" in capsys.readouterr().err
    assert len(predicted(capsys, tmp_path / "model", file, "--drop_missing")) == 2


@pytest.mark.parametrize(
    ("model", "file", "more", "said"),
    [("nowhere", "good.csv", [], "'nowhere'"), ("text", "nope.csv", [], "nope.csv'"),
     ("bare", "good.csv", [], "MaskedLM"), ("lm", "good.csv", [], "LlamaForCausalLM"),
     ("text", "good.csv", ["--text_column", "x"], "no column 'x'"),
     ("text", "good.csv", ["--output", "good.csv"], "is the input"), ("text", "good.csv", ["--output", "no/x"], "'no'"),
     ("text", "good.csv", ["--device", "magic"], "--device magic"), ("vit", "good.csv", [], "no column of images"),
     ("text", "latin.csv", [], "--encoding cp1252"), ("text", "good.csv", ["--max_length", "999"], "32 positions"),
     ("vit", "broken", [], "bad.png"), ("text", "good.csv", ["--encoding", "klingon"], "no such encoding"),
     ("untrained", "good.csv", [], "not trained")],
)  # fmt: skip
def test_one_sentence(
    model: str, file: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    makers = {"text": saved, "bare": encoder, "lm": language_model, "vit": vision_model, "untrained": untrained}
    if model in makers:
        makers[model](tmp_path / model)
    table(tmp_path / "good.csv", {"text": TEXTS})
    (tmp_path / "latin.csv").write_bytes("text\ncafé\n".encode("latin-1"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(b"no")
    before = {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert cli.main(["predict", model, file, *more]) == 1
    captured = capsys.readouterr()
    last = captured.err.rstrip().splitlines()[-1]
    assert last.startswith("hf-fam predict: ") and said in last and captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == before


def untrained(folder: Path) -> None:
    """A saved model whose weights have no head."""
    from safetensors.torch import load_file, save_file

    saved(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("classifier")}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
