"""The names of a task's flags, from the source of its dataclasses: to import these takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from ...inputs.flags import same_flag
from ...inputs.text import did_you_mean, quote
from ...train.removed_fields import refuse_removed_fields

_RECIPES = Path(__file__).parents[1]
_PACKAGE = _RECIPES.parent
# The recipe whose arguments a task has, if it is another one.
_SAME_ARGUMENTS = {"text_regression": "text_classification"}


class UsageError(ValueError):
    """A flag that does not exist or cannot be parsed; the message names it."""


def flag_names(task: str) -> list[str]:
    """Return the names of the flags of ``hf-fam train TASK``, without their dashes.

    Args:
        task: one of `hf_fam.recipes.TASKS`.

    Examples:
        >>> {"train_file", "learning_rate", "fam_lambda", "sam_rho"} <= {*flag_names("text_classification")}
        True
    """
    spec = find_spec("transformers")
    library = [Path(folder, "training_args.py") for folder in (spec and spec.submodule_search_locations) or ()]
    recipe = _RECIPES / f"{_SAME_ARGUMENTS.get(task, task)}.py"
    arguments = [recipe, _RECIPES / "common" / "arguments.py", _PACKAGE / "train" / "training_args.py", *library]
    names = [name for path in arguments for name in _fields(path)]
    strengths = [name for path in sorted((_PACKAGE / "methods").glob("*.py")) for name in _strength(path)]
    return [*dict.fromkeys([*names, *strengths])]


def refuse_unknown_flags(words: Sequence[str], names: Collection[str], where: str = "") -> None:
    """Refuse a flag that is not among the names of a task, or was removed from hf_fam.

    Args:
        words: a command line.
        names: all names, without their dashes.
        where: beginning of the message, such as a file with the flags.

    Raises:
        UsageError: names the flag and the nearest one.

    Examples:
        >>> refuse_unknown_flags(["--sed", "1"], ["seed"])
        Traceback (most recent call last):
            ...
        hf_fam.recipes.common.flag_names.UsageError: '--sed' is no argument of this task; did you mean --seed?
        `hf-fam train TASK --help_all` lists all.
    """
    known = {f"--{name}" for name in map(same_flag, names)}
    for word in words:
        flag = word.partition("=")[0]
        is_flag = flag.startswith("--") and flag != "--" and " " not in flag  # as argparse decides
        if is_flag and same_flag(flag) not in known and same_flag(flag).replace("--no_", "--") not in known:
            refuse_removed_fields([same_flag(flag)[2:]])
            raise UsageError(where + unknown_argument(flag, names))


def unknown_argument(word: str, names: Collection[str]) -> str:
    """Return the message about a word of a command line that is no argument of its task.

    Args:
        word: the word.
        names: all names, without their dashes.
    """
    near = did_you_mean(word.partition("=")[0], [f"--{name}" for name in names])
    return f"{quote(word)} is no argument of this task{near or '.'} `hf-fam train TASK --help_all` lists all."


def _fields(path: Path) -> Iterator[str]:
    """Yield the fields of the dataclasses of arguments in a file."""
    classes = [node for node in _nodes(path) if isinstance(node, ast.ClassDef) and node.name.endswith("Arguments")]
    for line in (line for node in classes for line in node.body if isinstance(line, ast.AnnAssign)):
        if "init=False" not in ast.unparse(line) and "ClassVar" not in ast.unparse(line):
            yield ast.unparse(line.target)


def _strength(path: Path) -> Iterator[str]:
    """Yield the flag of the strength of each method in a file."""
    for node in _nodes(path):
        if isinstance(node, ast.Assign) and (match := re.fullmatch(r"field = '(\w+)'", ast.unparse(node))):
            yield match[1]


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))
