"""Words in the wrong place: one sentence with the command that was meant, without heavy imports, and status 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hf_fam.cli import main as cli


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("text,label\na,b\n")
    Path("mine.yaml").write_text("seed: 1\n")
    Path("photos/cat").mkdir(parents=True)
    Path("tables").mkdir()
    Path("tables/train.csv").write_text("text,label\na,b\n")
    Path("my model").mkdir()
    Path("my model/config.json").write_text("{}")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("predict q.csv", "predict MODEL q.csv"),
        ("predict photos --output x.csv", "predict MODEL photos --output x.csv"),
        ("predict q.csv 'my model'", "predict 'my model' q.csv"),
        ("predict q.csv org/model --split test", "predict org/model q.csv --split test"),
        ("measure q.csv", "measure MODEL --dataset q.csv"),
        ("measure photos/ --items 3", "measure MODEL --dataset photos/ --items 3"),
        ("measure 'my model' q.csv", "measure 'my model' --dataset q.csv"),
        ("measure q.csv 'my model'", "measure 'my model' --dataset q.csv"),
        ("measure org/model org/data", "measure org/model --dataset org/data"),
        ("compare photos/", "compare image_classification --train_dir photos/"),
        ("compare q.csv --seeds 3", "compare text_classification --train_file q.csv --seeds 3"),
        ("train photos", "train image_classification --train_dir photos"),
        ("train tables", "train text_classification --data_dir tables"),
        ("train q.csv token_classification", "train token_classification --train_file q.csv"),
        ("train 'my model'", "train text_classification --model_name_or_path 'my model'"),
        ("train mine.yaml", "train text_classification mine.yaml"),
        ("train", "train text_classification --train_file FILE"),
        ("train --train_file q.csv", "train text_classification --train_file q.csv"),
        ("train --train_file q.csv causal_lm", "train causal_lm --train_file q.csv"),
        ("text_classification --train_file q.csv", "train text_classification --train_file q.csv"),
        ("text-regression q.csv", "train text-regression q.csv"),
    ],
)
def test_it_says_what_to_type(line: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(line))
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.splitlines()) == 1 and len(said) <= 300
    assert f"type `hf-fam {meant}`." in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train text_clasification", "did you mean text_classification?"),
        ("predict nowhere q.csv", "'nowhere' is no folder here"),
        ("predict photos q.csv", "contains no config.json"),
        ("measure q.csv --dataset q.csv", "'q.csv' is a file: give the folder of a saved model"),
        ("measure 'my model'", "required: --dataset"),
        ("layers q.csv", "'q.csv' is a file"),
        ("predict 'my model'", "required: FILE"),
        ("train text_classification 'my model'", "did you mean --model_name_or_path my model?"),
    ],
)
def test_other_mistakes_have_their_own_answers(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        cli.main(shlex.split(line))
    except SystemExit as end:
        assert end.code == 2
    assert said in capsys.readouterr().err


def test_help_stays_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--help"], ["measure", "q.csv", "-h"]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: hf-fam")
