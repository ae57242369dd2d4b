"""The flags of ``hf-fam`` as tables, read from its parsers and from the arguments of the recipes.

PYTHONPATH=tests python -m support.command_tables docs/generated/command.md
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from hf_fam.cli import compare_command
from hf_fam.cli.main import make_parser
from hf_fam.recipes import TASKS, default_configuration

Row = tuple[str, str]


def command_tables() -> str:
    """A heading, a usage and a table for every command, as Markdown."""
    parts = []
    for name, parser in subcommands(make_parser()).items():
        parts += [f"## `hf-fam {name}`", parser.description or ""]
        if name == "train":
            parts += list(train_tables())
        elif name == "compare":
            parts.append("`hf-fam compare TASK` takes these flags and all of `hf-fam train TASK`.")
            parts.append(table(action_rows(compare_command.make_parser(TASKS[0]))).replace(TASKS[0], "TASK"))
        else:
            parts.append(table(action_rows(parser)))
    return "\n\n".join(parts) + "\n"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def action_rows(parser: argparse.ArgumentParser) -> Iterator[Row]:
    """Each argument of a parser, with its help."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            yield spelled(action), (action.help or "") % {**vars(action), "prog": parser.prog}


def spelled(action: argparse.Action) -> str:
    """The argument as one types it; of two spellings the first."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{action.option_strings[0]}{value}{' ...' if action.nargs in ('+', '*') else ''}`"


def train_tables() -> Iterator[str]:
    """What all tasks share, then what each of them adds."""
    yield "`hf-fam train TASK` takes a YAML file, flags, or both. Flags override the file."
    yield "### Defaults of the tasks"
    yield defaults_table()
    by_task = {task: field_rows(task) for task in TASKS}
    shared = [row for row in by_task[TASKS[0]] if all(row in rows for rows in by_task.values())]
    yield "### All tasks"
    yield table(shared)
    yield (
        "All arguments of "
        "[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments)"
        " work too."
    )
    groups: dict[tuple[Row, ...], list[str]] = {}
    for task, rows in by_task.items():
        groups.setdefault(tuple(row for row in rows if row not in shared), []).append(task)
    for own, tasks in groups.items():
        yield f"### {' and '.join(f'`{task}`' for task in tasks)}"
        yield table(own)


def defaults_table() -> str:
    """What the YAML file of each task sets; a column for each."""
    settings = {task: yaml.safe_load(default_configuration(task).read_text(encoding="utf-8")) for task in TASKS}
    names = dict.fromkeys(name for values in settings.values() for name in values)
    rows = [[f"`{name}`", *(str(settings[task].get(name, "")) for task in TASKS)] for name in names]
    header = ["argument", *(task.replace("_", " ") for task in TASKS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def field_rows(task: str) -> list[Row]:
    """The fields that a recipe adds to the arguments of the Trainer."""
    recipe: Any = importlib.import_module(f"hf_fam.recipes.{task}")
    source: Any = importlib.import_module(recipe.make_run.__module__)  # some recipes only have other defaults
    trainers = {field.name for field in dataclasses.fields(TrainingArguments)}
    kinds = [
        kind for name, kind in vars(source).items() if name.endswith("Arguments") and dataclasses.is_dataclass(kind)
    ]
    bases = {base for kind in kinds for base in kind.__mro__[1:]}
    kinds = sorted((kind for kind in kinds if kind not in bases), key=place)
    fields = [field for kind in kinds for field in dataclasses.fields(kind) if field.init]
    return [
        (f"`--{field.name}{value_of(field)}`", field.metadata.get("help", "") + default_of(field))
        for field in fields
        if field.name not in trainers
    ]


def place(kind: type) -> int:
    """The model comes first, then the data, the method and FAM."""
    return {"ModelArguments": 0, "MethodArguments": 2, "FAMTrainingArguments": 3}.get(kind.__name__, 1)


def value_of(field: dataclasses.Field[Any]) -> str:
    """The placeholder of a flag's value; a truth value needs none."""
    if field.default is False:
        return ""
    kind = re.search(r"bool|int|float|$", str(field.type))
    assert kind
    return {"bool": " BOOL", "int": " N", "float": " X"}.get(kind.group(), " VALUE")


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default, unless there is none or the help states it."""
    if field.default in (None, False, dataclasses.MISSING) or "efault" in field.metadata.get("help", ""):
        return ""
    return f" Default: {field.default}."


def table(rows: Iterable[Row]) -> str:
    """Two columns, as Markdown."""
    lines = [f"| {flag} | {meaning.replace('|', chr(92) + '|')} |" for flag, meaning in rows]
    return "\n".join(["| argument | meaning |", "| --- | --- |", *lines])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(command_tables(), encoding="utf-8")
