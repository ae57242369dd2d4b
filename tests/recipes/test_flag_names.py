"""The names of flags that are read from source files are those that the parser takes."""

from __future__ import annotations

import importlib

import pytest

from hf_fam.recipes import TASKS
from hf_fam.recipes.common.flag_names import UsageError, flag_names, refuse_unknown_flags

for package in ("datasets", "peft", "pytorch_optimizer"):
    pytest.importorskip(package)


@pytest.mark.parametrize("task", TASKS)
def test_they_are_those_of_the_parser(task: str) -> None:
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def add_argument(self, *args: str, **kwargs: object) -> object:
            options.extend(name for name in args if name.startswith("--"))
            return super().add_argument(*args, **kwargs)

    options: list[str] = []
    Parser(importlib.import_module(f"hf_fam.recipes.{task}").ARGUMENT_TYPES, add_help=False)
    names = {name[2:] for name in options if "-" not in name[2:] and not name.startswith("--no_")}
    assert {*flag_names(task)} == names
    refuse_unknown_flags(options, flag_names(task))  # every spelling


@pytest.mark.parametrize("words", [["--trian_file", "x"], ["--seed=1", "--trian-file=x"], ["--no_seed_at_all"]])
def test_other_flags_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="is no argument of this task"):
        refuse_unknown_flags(words, flag_names("causal_lm"))


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--run_name", "--a b"], ["--"], ["-x"], ["seed"], ["--Seed x"]])
def test_values_are_no_flags(words: list[str]) -> None:
    refuse_unknown_flags(words, ["seed", "run_name"])
