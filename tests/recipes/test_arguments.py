"""What one types for a recipe: YAML below flags, and mistakes that are answered."""

from __future__ import annotations

import importlib
import re
import shlex
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

pytest.importorskip("datasets")

from hf_fam import FAMTrainingArguments
from hf_fam.recipes import default_configuration
from hf_fam.recipes.common.arguments import DataArguments, MethodArguments, ModelArguments
from hf_fam.recipes.common.classes import class_number
from hf_fam.recipes.common.command import drop_flags, repeat_command
from hf_fam.recipes.common.data import load_splits
from hf_fam.recipes.common.parsing import parse
from hf_fam.recipes.common.selection import select_samples
from hf_fam.recipes.common.training import prepare_run
from hf_fam.recipes.common.yaml_files import read_yaml
from hf_fam.recipes.text_classification import TextArguments
from support.launch import ROOT
from support.tiny_recipes import RECIPES, text_files

KINDS = (ModelArguments, DataArguments, MethodArguments, FAMTrainingArguments)


def written(folder: Path, text: str) -> str:
    path = folder / "some.yaml"
    path.write_text("model_name_or_path: m\nreport_to: none\nuse_cpu: true\n" + text)
    return str(path)


def test_flags_win_over_yaml(tmp_path: Path) -> None:
    schedule = "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}"
    path = written(tmp_path, f"learning_rate: 3e-4\ndo_eval: true\nseed: 7\nmax_steps: -1\n{schedule}")
    model, _, _, args = parse(KINDS, [path, "--learning_rate", "1e-3", "--output_dir", str(tmp_path)])
    assert model.model_name_or_path == "m"
    assert (args.learning_rate, args.seed, args.do_eval, args.max_steps) == (1e-3, 7, True, -1)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("method: sma\n", [], "did you mean sam"),
        ("method: sam\nsam_rho: 0.0\n", [], "give a number above 0"),
        ("method: plain\nfam_lambda: 0.1\n", [], "makes no use of fam_lambda"),
        ("fam_estimator: magic\n", [], "fam_estimator"),
        ("fam_every_n_steps: 2\n", [], "^fam_every_n_steps is not an argument of hf_fam: remove it"),
        ("", ["--fam-max-grad-ratio", "0.1"], "^fam_max_grad_ratio is not an argument of hf_fam: lower fam_lambda"),
    ],
)
def test_values_that_are_refused(tmp_path: Path, text: str, flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(KINDS, [written(tmp_path, text), "--output_dir", str(tmp_path), *flags])


@pytest.mark.parametrize(
    "flags",
    [["--text_column", "a,b"], ["--text-column=a,b"], ["--text_column_names", "a,b"], ["--text-column-name=a,b"]],
)
def test_spellings_of_a_column(tmp_path: Path, flags: list[str]) -> None:
    """In flags and in the file, where flags win; those of a comparison's final command are dropped in any spelling."""
    kinds = (ModelArguments, TextArguments, MethodArguments, FAMTrainingArguments)
    path = written(tmp_path, "text_column_names: c\nlabel_column_name: kind\ndo_train: true\n")
    _, columns, _, _ = parse(kinds, [path, "--output_dir", str(tmp_path), *flags])
    assert (columns.text_column, columns.label_column) == ("a,b", "kind")
    assert drop_flags([*flags, "--seed", "1"], ["text_column"]) == ["--seed", "1"]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises((SystemExit, ValueError), match=r"lerning_rate|2"):
        parse(KINDS, [written(tmp_path, "lerning_rate: 1.0\n"), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(("name", "reason"), [("missing.yaml", "there is no such file"), ("some.json", "no YAML file")])
def test_no_yaml_file(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(KINDS, [str(tmp_path / name)])


@pytest.mark.parametrize("text", ["foo: [\n", "a: b: c\n", "\ta: 1\n"])
def test_broken_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"some.yaml' cannot be read as YAML: .*line \d"):
        parse(KINDS, [written(tmp_path, text)])


def test_a_file_starts_from_the_defaults_of_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"defaults: text_regression\nlearning_rate: 1.0\noutput_dir: {tmp_path}\nuse_cpu: true\n")
    defaults = read_yaml(default_configuration("text_regression"))
    assert read_yaml(path) == {**defaults, "learning_rate": 1.0, "output_dir": str(tmp_path), "use_cpu": True}
    _, _, _, args = parse((ModelArguments, TextArguments, MethodArguments, FAMTrainingArguments), [str(path)])
    assert (args.learning_rate, args.num_train_epochs) == (1.0, defaults["num_train_epochs"])


@pytest.mark.parametrize("task", ["speech", "[a]", "../text_regression"])
def test_defaults_of_an_unknown_task(tmp_path: Path, task: str) -> None:
    with pytest.raises(ValueError, match=r"some.yaml', defaults: there is no task .*: choose one of causal_lm"):
        parse(KINDS, [written(tmp_path, f"defaults: {task}\n")])


def data(**given: Any) -> DataArguments:
    return DataArguments(**given)


def models(cache: Path) -> ModelArguments:
    return ModelArguments("some", cache_dir=str(cache))


def test_data_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for given, message in (
        ({}, "give dataset_name"),
        ({"validation_file": "f.csv"}, "give dataset_name"),
        ({"data_dir": "no_such_folder"}, "there is no such folder"),
        ({"data_dir": str(tmp_path), "train_file": "f.csv"}, "data_dir or train_file"),
        ({"train_file": "f.csv"}, "there is no such file"),
        ({"train_file": str(tmp_path / "a.txt")}, "files that end in '.txt' cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            load_splits(data(**given), models(tmp_path))


def test_validation_data_is_split_off(tmp_path: Path) -> None:
    files = text_files(tmp_path, lambda n: n % 2)
    given = data(train_file=files["train_file"], train_val_split=0.25)
    parts = select_samples(load_splits(given, models(tmp_path / "cache")), given, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 24, "validation": 8}
    assert not {*parts["train"]["text"]} & {*parts["validation"]["text"]} or len({*parts["train"]["text"]}) < 24


def test_labels_of_minus_one() -> None:
    assert [class_number(["-1", "0", "1"], None, value) for value in (-1, 0, 1)] == [0, 1, 2]
    assert [class_number(["no", "yes"], None, value) for value in (-1, None)] == [-100, -100]
    assert class_number(["0", "1"], None, 1.0) == 1
    with pytest.raises(ValueError, match="has the class 'maybe', which the training data lacks"):
        class_number(["no", "yes"], None, "maybe")


@pytest.mark.parametrize(
    ("processes", "use_cpu", "precision", "launched"),
    [
        (1, False, "bf16", "--num_processes 1 --mixed_precision bf16"),
        (1, True, None, "--num_processes 1 --mixed_precision no"),
        (4, False, None, "--multi_gpu --num_processes 4 --mixed_precision no"),
        (2, True, "no", "--config_file recipes/accelerate_configs/ddp_cpu.yaml --num_processes 2 --mixed_precision no"),
    ],
)
def test_command_for_the_card(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    use_cpu: bool,
    precision: str | None,
    launched: str,
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if precision is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    monkeypatch.chdir(ROOT)
    understood, _, _ = _validate_launch_command(launch_command_parser().parse_args([*launched.split(), "run.py"]))
    assert (understood.num_processes, bool(understood.multi_gpu)) == (processes, processes > 1)
    args = SimpleNamespace(world_size=processes, use_cpu=use_cpu)
    given = [
        "--hub_token",
        "hf_secret",
        "--hub_token=hf_secret",
        "--token",
        "hf_secret",
        "--train_file",
        str(tmp_path / "my data.csv"),
    ]
    script = str(RECIPES / "text_classification" / "run.py")
    config = str(RECIPES / "text_classification" / "fam.yaml")
    flags = [
        *given,
        f"--output_dir={tmp_path / 'out'}",
        "--push_to_hub",
        "--seed",
        "-1",
        "--resume_from_checkpoint",
        "x",
    ]
    assert repeat_command(args, [script, config, *flags]) == (
        f"accelerate launch {launched} recipes/text_classification/run.py recipes/text_classification/fam.yaml "
        "--train_file 'my data.csv' --output_dir=out --seed -1"
    )


@pytest.mark.parametrize("script", ["/home/me/project/train/run.py", "/home/me/recipes.py", "/run.py"])
def test_folders_of_other_scripts_are_not_published(script: str) -> None:
    command = repeat_command(SimpleNamespace(world_size=1, use_cpu=False), [script, "/home/me/project/my.yaml"])
    assert command.endswith(f"--mixed_precision no {Path(script).name} my.yaml")


@pytest.mark.parametrize(
    "given",
    [
        *("--hub-token hf_x", "--hub-token=hf_x", "--hub_token hf_x", "--hub_token=hf_x", "--token=hf_x"),
        *("--push-to-hub", "--push-to-hub=True", "--resume-from-checkpoint hf_x", "--resume-from-checkpoint=hf_x"),
    ],
)
def test_no_secret_is_in_the_command_of_the_card(given: str) -> None:
    """The parser takes dashes for underscores."""
    argv = ["hf-fam", "train", "causal_lm", *given.split(), "--seed", "1"]
    assert repeat_command(SimpleNamespace(world_size=1, use_cpu=True), argv) == "hf-fam train causal_lm --seed 1"


@pytest.mark.parametrize("given", ["--hub_tok hf_x", "--hub-tok=hf_x", "--tok hf_x"])
def test_abbreviations_are_refused(tmp_path: Path, given: str) -> None:
    """What the card leaves out is known by its whole name."""
    with pytest.raises(ValueError, match="no argument of this task"):
        parse(KINDS, [written(tmp_path, ""), "--output_dir", str(tmp_path), *given.split()])


# Launchers whose code is in the module of another task.
MODULES = {"text_regression": "text_classification", "paper_table": "image_classification"}
DOCUMENTED = re.findall(r"`(accelerate launch recipes/[^`]*run\.py [^`]*)`", (ROOT / "docs" / "recipes.md").read_text())


def test_every_recipe_is_documented() -> None:
    names = ("classifier_study", "comparison", "flatness_study", "gan_interpolation", "wgan")
    studies = {f"recipes/{name}/run.py" for name in names}
    scripts = {path.relative_to(ROOT).as_posix() for path in RECIPES.glob("*/run.py")} - studies
    assert {command.split()[2] for command in DOCUMENTED} == scripts


@pytest.mark.parametrize("command", DOCUMENTED)
def test_documented_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Up to the point where data would be read; parsed by the script's own main."""
    _, _, script, config, *flags = shlex.split(command)
    launcher = Path(script).parent.name
    module = importlib.import_module(f"hf_fam.recipes.{MODULES.get(launcher, launcher)}")
    parsed: list[Any] = []

    class Understood(Exception):
        pass

    def stop(args: Any, model_args: Any) -> None:
        parsed.append(args)
        raise Understood

    (tmp_path / "my_images").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "prepare_run", stop)
    with pytest.raises(Understood):
        module.main([str(ROOT / config), *flags, "--use_cpu"])
    assert parsed[0].output_dir.startswith("out/") and parsed[0].do_train and parsed[0].do_eval


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_cpu(precision: str, tmp_path: Path) -> None:
    """Accelerate trains in float32 there with fp16, and in bfloat16 with bf16."""
    args = FAMTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", **{precision: True})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_run(args, models(tmp_path))
    said = [str(w.message) for w in caught if "has no effect on a CPU" in str(w.message)]
    assert len(said) == (1 if precision == "fp16" else 0)
