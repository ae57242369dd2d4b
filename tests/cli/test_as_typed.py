"""Messages of a command name what was typed: flags with dashes, and no None."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_fam.cli import main as cli
from hf_fam.cli.as_typed import as_typed

FLAGS = ["fam_lambda", "fam_layer", "fam_probes", "layers", "seed", "method", "sam_rho", "weight_decay", "output_dir"]


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("seed=-1: give a number.", "--seed=-1: give a number."),
        ("seed: give a number.", "--seed: give a number."),
        ("the seed of a method", "the seed of a method"),
        ("--seed=1 and weight_decay", "--seed=1 and --weight_decay"),
        ("layer='x' is unknown", "--fam_layer='x' is unknown"),
        ("the layer's fam_lambda isn't fam_probes", "the layer's --fam_lambda isn't --fam_probes"),
        ("'fam_lambda' and \"sam_rho\" are values", "'fam_lambda' and \"sam_rho\" are values"),
        ("`sam_rho` must be positive", "--sam_rho must be positive"),
        ("method='x': choose one of fam, weight_decay.", "--method='x': choose one of fam, weight_decay."),
        ("a/sam_rho, args.sam_rho, sam_rho.csv, sam_rho()", "a/sam_rho, args.sam_rho, sam_rho.csv, sam_rho()"),
        ("give sam_rho.", "give --sam_rho."),
        ("give 1, or None for the default", "give 1, or leave it out for the default"),
        ("so leave fam_probes at None.", "so leave out --fam_probes."),
        ("other_name=3 is no flag", "other_name=3 is no flag"),
    ],
)
def test_names(message: str, typed: str) -> None:
    assert as_typed(message, FLAGS) == typed


def test_of_two_flags_the_first_is_meant() -> None:
    """In compare, both exist: --methods is the command's own, --method that of a training."""
    said = "method='fma': did you mean fam? Choose one of fam, weight_decay."
    assert as_typed(said, ["methods", "method", "weight_decay"]) == f"--{said}".replace("method", "methods")
    assert as_typed(said, ["method", "methods", "weight_decay"]) == f"--{said}"


def test_an_argument_of_the_package_that_a_command_calls_otherwise() -> None:
    assert as_typed("layer='x' is unknown", ["layers"]) == "--layers='x' is unknown"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in ("datasets", "peft", "pytorch_optimizer"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("text,label\n" + "a,b\nc,d\n" * 8)
    return tmp_path


def test_a_command_names_its_flag(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ["--train_file", "q.csv", "--model_name_or_path", "nowhere"]
    assert cli.main(["train", "text_classification", *usual, "--fam-lambda", "-1"]) == 1
    said = capsys.readouterr().err
    assert "hf-fam train: --fam_lambda=-1.0: give a number" in said and "None" not in said
    assert cli.main(["compare", "text_classification", *usual, "--max_train_samples", "0"]) == 1
    assert "hf-fam compare: --max_train_samples=0: give" in capsys.readouterr().err


def test_an_empty_output_dir_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell's variable that is not set gives it."""
    usual = ["--train_file", "q.csv", "--model_name_or_path", "nowhere"]
    assert cli.main(["train", "text_classification", *usual, "--output_dir", ""]) == 1
    assert "hf-fam train: --output_dir='': give the name of a folder." in capsys.readouterr().err


def test_names_of_a_yaml_file_stay(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a file of one's own they have no dashes; a flag that overrides it has."""
    Path("mine.yaml").write_text("defaults: text_classification\nfam_lambda: -1\n")
    assert cli.main(["train", "text_classification", "mine.yaml", "--train_file", "q.csv"]) == 1
    assert "hf-fam train: fam_lambda=-1.0" in capsys.readouterr().err
    assert cli.main(["train", "text_classification", "mine.yaml", "--train_file", "q.csv", "--fam_lambda", "-2"]) == 1
    assert "hf-fam train: --fam_lambda=-2.0" in capsys.readouterr().err
