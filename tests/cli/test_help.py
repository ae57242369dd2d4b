"""Help: short, quick, without the extras, with the defaults that hold; and the answer to unknown options."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from hf_fam.cli import main as cli
from hf_fam.cli import train_help
from hf_fam.recipes import FROZEN_DEFAULTS, TASKS, default_configuration

# What makes a help slow, or what a plain installation does not have.
HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "peft", "sklearn", "scipy", "matplotlib",
         "accelerate", "pytorch_optimizer", "PIL"}  # fmt: skip

PROGRAM = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ImportError("not for a help: " + name)
sys.meta_path.insert(0, Refuse())
from hf_fam.cli.main import main
sys.exit(main({words!r}))
"""


def helped(*words: str) -> subprocess.CompletedProcess[str]:
    """The help of a command, in a process where a heavy import is an error."""
    program = PROGRAM.format(heavy=HEAVY, words=list(words))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [(), ("--help",), *((name, "--help") for name in ("train", "compare", "predict", "layers", "measure", "demo")),
     *(("train", task, "--help") for task in TASKS), ("compare", "causal_lm", "--help"), ("train", "causal_lm", "-h"),
     ("train", "text_classification", "--train_file", "x.csv", "--help")],
)  # fmt: skip
def test_help_is_light(words: tuple[str, ...]) -> None:
    result = helped(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: hf-fam")


@pytest.mark.parametrize(
    ("words", "near"),
    [(["train", "text_classification", "--trian_file", "x"], "--train_file"),
     (["train", "causal_lm", "--lora_rr=3"], "--lora_r"), (["train", "image_classification", "--sam_roh", "1"],
     "--sam_rho"), (["compare", "text_classification", "--train_file", "q.csv", "--sedes", "3"], "--seeds"),
     (["train", "text_classification", "--fam_every_n_steps", "3"], "remove it")],
)  # fmt: skip
def test_a_misspelled_flag_is_answered_before_heavy_imports(words: list[str], near: str) -> None:
    program = f"import sys\nfrom hf_fam.cli.main import main\nprint(main({words!r}), {HEAVY!r} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert len(result.stderr.splitlines()) == 1 and near in result.stderr, result.stderr
    assert result.stdout == f"{2 if near.startswith('--') else 1} set()\n"


def test_a_heavy_import_would_be_found() -> None:
    assert "not for a help" in helped("layers", "nowhere").stderr


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "predict" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_it_is_a_page(task: str) -> None:
    lines = train_help.page(task).splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80
    assert [line for line in lines if line.rstrip(":").isalpha()] == [
        "data:", "model:", "method:", "strength:", "output:"
    ]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_its_defaults_are_those_that_hold(task: str, tmp_path: Path) -> None:
    """Every flag exists, and every default on the page is what the recipe uses without the flag."""
    for package in ("datasets", "peft", "pytorch_optimizer"):
        pytest.importorskip(package)
    from hf_fam.recipes.common.parsing import parse

    recipe = importlib.import_module(f"hf_fam.recipes.{task}")
    parsed = parse(recipe.ARGUMENT_TYPES, [str(default_configuration(task)), "--use_cpu", "True"])
    values = {name: value for arguments in parsed for name, value in vars(arguments).items()}
    page = " ".join(train_help.page(task).split())
    # The columns of CIFAR-10, the default data set, are known.
    words, preset = ("guessed",), ("image_column", "label_column") if task == "image_classification" else ()
    for flags in train_help.sections(task).values():
        for name, _, _ in flags:
            assert name in values, name
            entry = page.partition(f"--{name} ")[2].partition(" --")[0]
            if "(default: " not in entry or name in ("fam_lambda",):
                continue
            shown = entry.partition("(default: ")[2].partition(")")[0]
            real = values[name]
            if shown in words:
                assert real is None or name in preset, name
            elif shown == "auto, the head":
                assert real == "auto"
            elif shown == "utf-8":
                assert real is None
            elif name == "dataset_name":
                assert real.endswith(shown)
            elif isinstance(real, (int, float)) and not isinstance(real, bool):
                assert float(shown) == real
            else:
                assert shown.lower() == str(getattr(real, "value", real)).lower(), name


def test_the_default_strengths() -> None:
    from hf_fam.flatness.estimators import default_lambda
    from hf_fam.flatness.vocabulary import LARGE_VOCABULARY

    assert f"default: {default_lambda('closed_form', 2):g} at the head" in train_help.page("text_classification")
    large = (
        f"default: {default_lambda('closed_form', LARGE_VOCABULARY + 1):.0e} for more than {LARGE_VOCABULARY:,} tokens"
    )
    assert large.replace("e-06", "e-6") in " ".join(train_help.page("causal_lm").split())
    assert any("learning_rate" in word for word in FROZEN_DEFAULTS)  # "with other defaults"


def test_all_flags_have_the_defaults_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("datasets", "peft", "pytorch_optimizer"):
        pytest.importorskip(package)
    assert cli.main(["train", "text_classification", "--help_all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The initial learning rate for the optimizer. (default: 2e-5)" in shown
    assert "The batch size per device for training. (default: 16)" in shown
    assert "--fam_smoothing" in shown and "--sam_rho" in shown
    assert cli.main(["train", "text_classification", "--help-all"]) == 0


@pytest.mark.parametrize(
    "words",
    [["layers", "nowhere", "--num_labels", "3"], ["layers", "nowhere", "--num-labels", "3"],
     ["layers", "nowhere", "--num-labels=3", "--trust-remote-code"],
     ["measure", "nowhere", "--dataset", "x", "--label_column", "y", "--batch_size=3", "--no_robustness"],
     ["measure", "nowhere", "--dataset", "x", "--label-column", "y", "--batch-size=3", "--no-robustness"],
     ["predict", "nowhere", "x.csv", "--text-column", "y", "--batch-size", "3"],
     ["predict", "nowhere", "x.csv", "--text_column", "y", "--batch_size", "3"],
     ["predict", "nowhere", "x.csv", "--text_column_names", "y"], ["measure", "nowhere", "--dataset", "x",
     "--text-column-name", "y", "--label_column_name=z", "--image_column_name", "z"]],
)  # fmt: skip
def test_spellings_of_an_option_are_the_same(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 1  # the model is refused, not the options
    assert "'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["text-classification", "text_classification", "text-regression"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_tasks_have_dashes_or_underscores(task: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        cli.main([command, task, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: hf-fam {command} {task.replace('-', '_')} ")


def test_a_value_keeps_its_dashes() -> None:
    options = cli.make_parser().parse_args(["measure", "a-b", "--dataset=c-d/e_f", "--layers", "x-y,z_w"])
    assert (options.model, options.dataset, options.layers) == ("a-b", "c-d/e_f", "x-y,z_w")


@pytest.mark.parametrize(
    ("words", "near"),
    [(["layers", "x", "--num_lables", "3"], "--num_labels"), (["measure", "x", "--dataset", "y", "--label_colunm", "z"],
     "--label_column"), (["predict", "x", "y", "--outptu", "z"], "--output"), (["demo", "--quik"], "--quick"),
     (["train", "text_classification", "--learnin_rate", "1"], "--learning_rate"),
     (["compare", "text_classification", "--grid_sice", "1", "--train_file", "x.csv"], None)],
)  # fmt: skip
def test_the_near_option_is_named(words: list[str], near: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] in ("train", "compare"):
        for package in ("datasets", "peft", "pytorch_optimizer"):
            pytest.importorskip(package)
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err.splitlines()[-1]
    assert status in (1, 2) and said.startswith("hf-fam ") and words[-2 if near is None else -1].lstrip("-")[:4]
    assert near is None or f"did you mean {near}?" in said
