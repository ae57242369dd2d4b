"""hf-fam train: it runs the recipes of the package, and says in one line why one cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_fam.cli import main as cli
from hf_fam.cli import train_command
from support.tiny_recipes import encoder, image_folders, text_files, vision_model

ROOT = Path(__file__).parents[2]


def test_recipes_in_the_working_folder_are_not_imported(tmp_path: Path) -> None:
    """Not even where `python -m` puts the working folder first on the path."""
    task = tmp_path / "recipes" / "text_classification"
    task.mkdir(parents=True)
    for path in (tmp_path / "recipes" / "__init__.py", task / "__init__.py", task / "run.py"):
        path.write_text("raise SystemExit('imported from the working folder')\n")
    command = [sys.executable, "-m", "hf_fam", "train", "text_classification", "--train_file", "nowhere.csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines()[-1] == "hf-fam train: --train_file='nowhere.csv': there is no such file."
    assert (result.returncode, result.stdout) == (1, "")


def test_the_parser_imports_no_recipe() -> None:
    program = "import sys, hf_fam.cli.main; print(*(n for n in sys.modules if n.startswith('hf_fam.recipes')))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {*result.stdout.split()} == {
        f"hf_fam.recipes{name}" for name in ("", ".common", ".common.flag_names", ".common.flag_of_path")
    }


def test_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "speech"])
    assert "invalid choice: 'speech' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "did you mean train?"),
        (["train", "text_clasification"], "did you mean text_classification?"),
        (["compare", "image_clasification"], "did you mean image_classification?"),
    ],
)
def test_the_nearest_command_or_task_is_named(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    said = capsys.readouterr().err
    assert meant in said and said.count("\n") == 1


def test_missing_packages_are_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "REQUIRED_PACKAGES", ("yaml", "no_such_package"))
    assert cli.main(["train", "text_classification", "--train_file", "x.csv"]) == 1
    expected = "hf-fam train: this command needs no_such_package: pip install 'hf-fam[recipes]'.\n"
    assert capsys.readouterr().err == expected


def test_what_a_recipe_refuses_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    assert cli.main(["train", "text_classification", "--train_file", "nowhere.csv"]) == 1
    assert capsys.readouterr().err == "hf-fam train: --train_file='nowhere.csv': there is no such file.\n"


@pytest.mark.parametrize("command", ["train", "compare"])
def test_data_without_a_flag(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    assert cli.main([command, "text_classification", "q.csv"]) == 1
    assert capsys.readouterr().err.endswith("'q.csv' is no YAML file: did you mean --train_file q.csv?\n")


def test_without_data_it_says_which_flag_takes_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.chdir(tmp_path)
    for task in ("text_classification", "image_classification"):
        assert cli.main(["train", task, "--cache_dir", str(tmp_path / "cache"), "--output_dir", "out"]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(
            "hf-fam train: --train_file (--train_dir for images) takes data of your own; --dataset_name="
        )


def test_a_configuration_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    assert cli.main(["train", "text_classification", str(tmp_path / "mine.yaml")]) == 1
    assert "mine.yaml': there is no such file." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.csv", b"", "--train_file='{file}': the file is empty."),
        ("head.csv", b"text,label\n", "--train_file='{file}': there are no rows."),
        ("broken.parquet", b"PK\x03\x04", "--train_file='{file}': the data cannot be read: "),
    ],
)
def test_broken_data_is_answered_in_one_line(
    name: str, content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    file = tmp_path / name
    file.write_bytes(content)
    given = ["--train_file", str(file), "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    assert cli.main(["train", "text_classification", *given]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("hf-fam train: " + reason.format(file=file))
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_found_is_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    file = tmp_path / "texts.csv"
    file.write_text("text,label\n" + "".join(f"text {k},{'ab'[k % 2]}\n" for k in range(12)), encoding="utf-8")
    given = ["--train_file", str(file), "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    assert cli.main(["train", "text_classification", *given, "--model_name_or_path", "no/such/folder"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("hf-fam train: 'no/such/folder' ")


@pytest.mark.parametrize("task", ["image_classification", "text_classification"])
def test_a_model_of_another_kind(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model for texts is given for images, and the other way round."""
    pytest.importorskip("datasets")
    pytest.importorskip("pytorch_optimizer")
    if task == "image_classification":
        model, data = encoder(tmp_path / "model"), ["--train_dir", image_folders(tmp_path / "photos")["train_dir"]]
    else:
        files = text_files(tmp_path, lambda n: ("no", "yes")[n % 2])
        model, data = vision_model(tmp_path / "model"), ["--train_file", files["train_file"]]
    words = ["train", task, *data, "--model_name_or_path", model, "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    assert cli.main(words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    kind, head = ("bert", "Image") if task == "image_classification" else ("vit", "Sequence")
    assert f"is a model of type '{kind}', for which transformers has no AutoModelFor{head}Classification" in said
    assert said.endswith(": give another model.")
