"""Parse the arguments of a recipe: a YAML file and the command line, whose flags override it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from ...inputs.flags import same_flag, spell_flag
from ...inputs.text import LONGEST_PATH, one_line, quote
from ...methods import METHODS
from ...train.removed_fields import refuse_removed_fields
from ...train.training_args import FAMArguments
from .. import CONFIGURATIONS
from .arguments import FAM, TRAINER_FIELDS, DataArguments, MethodArguments
from .flag_names import UsageError, unknown_argument
from .training_arguments import check_training_arguments
from .yaml_files import as_flags, read_yaml

# Arguments whose value is a mapping as JSON, or a file that contains one.
FILES_OR_MAPPINGS = (
    "accelerator_config", "deepspeed", "fsdp_config", "gradient_checkpointing_kwargs", "liger_kernel_config",
    "lr_scheduler_kwargs",
)  # fmt: skip


def parse(
    argument_types: Sequence[Any], argv: Sequence[str] | None = None, methods: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Parse a YAML file and flags into dataclasses.

    Args:
        argument_types: the dataclasses, among them `MethodArguments` and one with the fields of `FAMArguments`.
        argv: the command line without the script. The first argument may be a YAML file; flags override it. Defaults
            to the command line of this process.
        methods: all methods that train with these arguments; the one that the arguments name by default.

    Returns:
        One object for each dataclass.

    Raises:
        ValueError: the YAML file is missing, broken or not a mapping; a name is unknown; a value is missing, of the
            wrong type or out of range; or a field of FAM does not exist any more or is set for another method.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = _Parser(argument_types, allow_abbrev=False)
    flags = [spell_flag(word) for word in collect_flags(words, parser.lists)]
    given = [name for name in map(flag_name, flags) if name is not None]
    refuse_removed_fields(given)
    try:
        *parsed, remaining = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    except UsageError:
        raise
    except Exception as error:  # of many kinds, where transformers reads files and mappings that arguments name
        mappings = [name for name in FILES_OR_MAPPINGS if name in given]
        raise ValueError(f"{''.join(f'{name}: ' for name in mappings)}{one_line(str(error))}") from error
    if remaining:
        raise UsageError(unknown_argument(remaining[0], parser.fields))
    for arguments in parsed:
        check_training_arguments(arguments)
        if isinstance(arguments, DataArguments):
            arguments.is_whole = bool(methods)  # a comparison makes its own splits
    refuse_unused_fields(parsed, methods)
    refuse_nothing_to_do(parsed, words)
    return tuple(parsed)


class _Parser(HfArgumentParser):
    """A parser whose refusals are errors with one sentence, instead of pages of usage."""

    def __init__(self, argument_types: Sequence[Any], **kwargs: Any) -> None:
        self.fields: list[str] = []
        self.lists: set[str] = set()  # the fields that take a list of values
        super().__init__(argument_types, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        self.fields.append(action.dest)
        if action.nargs in ("+", "*"):
            self.lists.add(action.dest)
        return action

    def error(self, message: str) -> NoReturn:
        raise UsageError(one_line(re.sub(r"^argument (--\w+)\S*:", r"\1:", message)))


def all_flags(argument_types: Sequence[Any], configuration: Path, prog: str) -> str:
    """Return the help of all flags of a task.

    Args:
        argument_types: the dataclasses.
        configuration: the YAML file with the defaults of the task.
        prog: the command, for its first line.
    """
    parser = _Parser(argument_types, prog=prog, usage="%(prog)s [FILE.yaml] [--FLAG VALUE ...]", allow_abbrev=False)
    parser.set_defaults(**read_yaml(configuration))
    return parser.format_help()


def collect_flags(argv: Sequence[str], lists: Collection[str]) -> list[str]:
    """Return the flags of a command line, after those for the YAML file that it may start with.

    Args:
        argv: the command line.
        lists: the fields that take a list of values.

    Raises:
        ValueError: the YAML file is missing or broken, or gives a list to another field.
    """
    if not argv or argv[0].startswith("-"):
        return [*argv]
    settings = read_yaml(Path(argv[0]))
    for key, value in settings.items():
        if isinstance(value, list) and key not in lists:
            raise ValueError(f"{quote(argv[0], LONGEST_PATH)}: {key} is {quote(value)}: give one value.")
    return [*as_flags(settings), *argv[1:]]


def flag_name(word: str) -> str | None:
    """Return the field that a flag sets, or None for a word that is no flag.

    Examples:
        >>> flag_name("--learning-rate=1e-3"), flag_name("--seed"), flag_name("1")
        ('learning_rate', 'seed', None)
    """
    return same_flag(word[2:].partition("=")[0]) if word.startswith("--") else None


def refuse_nothing_to_do(parsed: Sequence[Any], words: Sequence[str]) -> None:
    """Refuse a run that neither trains, evaluates nor predicts.

    Args:
        parsed: the objects that `parse` returns.
        words: the command line, which may begin with a YAML file.

    Raises:
        ValueError: says what to add.
    """
    args = next((a for a in parsed if isinstance(a, TrainingArguments)), None)
    if args is not None and not (args.do_train or args.do_eval or args.do_predict):
        nothing = "none of do_train, do_eval and do_predict is set, so there is nothing to do"
        file = Path(words[0]) if words and not words[0].startswith("-") else None
        if file is None or file.parent == CONFIGURATIONS:
            raise ValueError(f"{nothing}: give do_train, do_eval or do_predict.")
        raise ValueError(
            f"{quote(words[0], LONGEST_PATH)}: {nothing}: add `do_train: true`, or `defaults: TASK` for the default "
            "settings of a task."
        )


def refuse_unused_fields(parsed: Sequence[Any], methods: Sequence[str] = ()) -> None:
    """Refuse fields that have no effect, because they belong to another method.

    Args:
        parsed: the objects that `parse` returns.
        methods: all methods that train with them; that of `MethodArguments` by default.

    Raises:
        ValueError: the message names method and fields.
    """
    named = [arguments.method for arguments in parsed if isinstance(arguments, MethodArguments)]
    used = {*(methods or named or [FAM])}
    fields = {f.name: FAM for f in dataclasses.fields(FAMArguments)}
    fields |= {kind.field: name for name, kind in METHODS.items() if kind.field and kind.field not in TRAINER_FIELDS}
    unused: dict[str, list[str]] = {}
    for arguments in (a for a in parsed if isinstance(a, FAMArguments | MethodArguments)):
        for f in dataclasses.fields(arguments):
            if f.name in fields and fields[f.name] not in used and getattr(arguments, f.name) != f.default:
                unused.setdefault(fields[f.name], []).append(f.name)
    for owner, names in unused.items():
        raise ValueError(
            f"method={', '.join(sorted(used))} makes no use of {', '.join(names)}: leave out what belongs to {owner}, "
            f"or choose method={owner!r}."
        )
