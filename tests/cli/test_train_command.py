"""hf-fam train: which recipes there are, and what it says when one cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_fam.cli import main as cli
from hf_fam.cli import train_command

ROOT = Path(__file__).parents[2]


def test_there_is_a_task_for_each_recipe() -> None:
    assert train_command.tasks() == [
        "causal_lm",
        "image_classification",
        "text_classification",
        "text_regression",
        "token_classification",
    ]


def test_the_wheel_contains_every_recipe() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in (*train_command.tasks(), "common", "metrics"):
        assert f'"recipes/{folder}" = "hf_fam/data/recipes/{folder}"\n' in text


def test_recipes_of_a_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "data" / "recipes", tmp_path / "recipes"
    monkeypatch.setattr(train_command, "FOLDERS", (inside, outside))
    assert train_command.tasks() == []  # and the other commands work
    for folder, task in ((outside, "two"), (inside, "one")):
        (folder / task).mkdir(parents=True)
        (folder / task / train_command.CONFIGURATION).touch()
        assert train_command.tasks() == [task]


def test_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "speech"])
    assert "invalid choice: 'speech' (choose from" in capsys.readouterr().err


def test_missing_packages_are_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "NEEDED", ("yaml", "no_such_package"))
    assert cli.main(["train", "text_classification", "--train_file", "x.csv"]) == 1
    expected = 'hf-fam train: the recipes need no_such_package: pip install "hf-fam[recipes]".\n'
    assert capsys.readouterr().err == expected


def test_what_a_recipe_refuses_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("evaluate")
    pytest.importorskip("pytorch_optimizer")
    assert cli.main(["train", "text_classification", "--train_file", "nowhere.csv"]) == 1
    assert capsys.readouterr().err == "hf-fam train: train_file='nowhere.csv': there is no such file.\n"


def test_a_configuration_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("evaluate")
    pytest.importorskip("pytorch_optimizer")
    assert cli.main(["train", "text_classification", str(tmp_path / "mine.yaml")]) == 1
    assert "mine.yaml' is no YAML file" in capsys.readouterr().err
