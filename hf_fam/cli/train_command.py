"""``hf-fam train``: runs a recipe of `hf_fam.recipes`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..inputs.packages import require_packages
from ..inputs.text import LONGEST_PATH, quote
from ..recipes import TASKS, default_configuration, task_called, with_defaults
from ..recipes.common.flag_names import flag_names, refuse_unknown_flags
from .quiet import quiet_libraries
from .train_help import page

# Some of these packages are imported only after the training, which is too late to learn that they are missing.
REQUIRED_PACKAGES = ("datasets", "peft", "PIL", "pytorch_optimizer", "scipy", "sklearn", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command; those of a recipe are parsed by the recipe."""
    parser.add_argument("task", metavar="TASK", type=task_called, choices=TASKS, help=f"one of {', '.join(TASKS)}")
    parser.add_argument(
        "train_arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="a YAML file of your own, which replaces the default settings of the task, and flags, which override it; "
        "`hf-fam train TASK --help` lists them",
    )


def run(task: str, arguments: Sequence[str]) -> None:
    """Run a recipe in this process.

    Args:
        task: one of `TASKS`.
        arguments: arguments of the recipe; without a YAML file the default settings of the task are used.

    Raises:
        MissingPackageError: packages are missing.
        ValueError: the recipe refuses its arguments or data.
    """
    if wants(arguments, "-h", "--help"):
        print(page(task))
        return
    if wants(arguments, "--help_all"):
        require_packages("this command", "recipes", *REQUIRED_PACKAGES)
        print(recipe_help(task, importlib.import_module(f"..recipes.{task}", __package__).ARGUMENT_TYPES))
        return
    check_arguments(arguments, flag_names(task))
    recipe = importlib.import_module(f"..recipes.{task}", __package__)
    quiet_libraries(shows_training=True)
    recipe.main(with_defaults(task, arguments))


def wants(arguments: Sequence[str], *options: str) -> bool:
    """Return True if one of some options without a value is among the arguments."""
    return any(word.replace("-", "_") in {option.replace("-", "_") for option in options} for word in arguments)


def check_arguments(arguments: Sequence[str], names: Collection[str]) -> None:
    """Refuse unknown flags and missing packages before the seconds that the imports of a recipe take.

    Args:
        arguments: arguments of the recipe, which may begin with a YAML file.
        names: names of all flags.

    Raises:
        MissingPackageError: packages are missing.
        ValueError: names a flag or an entry of the YAML file that does not exist, or says why the file cannot be read.
    """
    refuse_unknown_flags(arguments, names)
    require_packages("this command", "recipes", *REQUIRED_PACKAGES)
    if arguments and not arguments[0].startswith("-"):
        from ..recipes.common.yaml_files import as_flags, read_yaml

        refuse_unknown_flags(as_flags(read_yaml(Path(arguments[0]))), names, f"{quote(arguments[0], LONGEST_PATH)}: ")


def recipe_help(task: str, argument_types: Sequence[Any]) -> str:
    """Return the page of all flags of a task, with the defaults of its YAML file.

    Args:
        task: one of `TASKS`.
        argument_types: the dataclasses of its arguments.
    """
    from ..recipes.common.parsing import all_flags

    return all_flags(argument_types, default_configuration(task), prog=f"hf-fam train {task}")
