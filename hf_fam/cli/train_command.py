"""``hf-fam train``: the recipes of the repository, which the wheel contains too."""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# In a wheel, and in a checkout.
FOLDERS = (PACKAGE / "data" / "recipes", PACKAGE.parent / "recipes")
CONFIGURATION = "fam.yaml"
# Some of them are imported after the training only, which is too late to learn that they are missing.
NEEDED = ("datasets", "evaluate", "peft", "PIL", "pytorch_optimizer", "scipy", "sklearn", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command: those of a recipe are the recipe's business."""
    parser.add_argument("task", metavar="TASK", choices=tasks(), help=f"one of {', '.join(tasks())}")
    parser.add_argument(
        "recipe_arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help=f"a YAML file of your own ({CONFIGURATION} of the recipe by default) and flags, which win over it; "
        "`hf-fam train TASK --help` lists them",
    )


def tasks() -> list[str]:
    """What there is a recipe for.

    Examples:
        >>> "text_classification" in tasks()
        True
    """
    return sorted(file.parent.name for file in recipes_folder().glob(f"*/{CONFIGURATION}"))


def recipes_folder() -> Path:
    """Where the recipes are."""
    return next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])


def run(task: str, given: list[str]) -> None:
    """Run a recipe in this process.

    Args:
        task: one of `tasks`.
        given: its arguments.

    Raises:
        ValueError: packages are missing, or the recipe refuses its arguments or data.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f'the recipes need {", ".join(missing)}: pip install "hf-fam[recipes]".')
    folder = recipes_folder()
    sys.path.append(str(folder.parent))
    if not given or given[0].startswith("-"):
        given = [str(folder / task / CONFIGURATION), *given]
    importlib.import_module(f"{folder.name}.{task}.run").main(given)
