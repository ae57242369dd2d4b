"""Words in the wrong place of a command line, such as data where the task or the model belongs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from itertools import takewhile

from ..inputs.text import one_line
from ..recipes import TASKS, task_called
from ..recipes.common.flag_of_path import flag_of_path, is_saved_model


def what_to_type(words: Sequence[str]) -> str | None:
    """Return a sentence with the command that was meant, or None if the first words are in their places.

    Args:
        words: the command line without the program's name.

    Examples:
        >>> what_to_type(["text_classification", "--train_file", "a.csv"])
        'the command comes first: type `hf-fam train text_classification --train_file a.csv`.'
        >>> what_to_type(["train", "--train_file", "a.csv", "text_classification"])
        'the task comes first: type `hf-fam train text_classification --train_file a.csv`.'
        >>> what_to_type(["train", "text_classification", "--train_file", "a.csv"])
    """
    if not words or {"-h", "--help"} & {*words}:
        return None
    command, *rest = words
    if task_called(command) in TASKS:
        return _typed("the command comes first", "train", *words)
    if command in ("train", "compare") and (not rest or task_called(rest[0]) not in TASKS):
        return _task_first(command, rest or ["--train_file", "FILE"])
    first = [*takewhile(lambda word: not word.startswith("-"), rest)]
    return _model_first(command, first, rest[len(first) :]) if first else None


def _task_first(command: str, words: Sequence[str]) -> str | None:
    """Return the sentence about a task that is not the first word."""
    task = next((word for word in words if task_called(word) in TASKS), None)
    others = [word for word in words if word != task]
    flag = flag_of_path(others[0]) if os.path.exists(others[0]) else None
    usual = "image_classification" if flag == "--train_dir" else "text_classification"
    if flag is not None:
        others.insert(0, flag)
    elif task is None and not others[0].startswith("-") and not others[0].endswith((".yaml", ".yml")):
        return None  # a misspelled task
    choice = "" if task is not None else f", one of {', '.join(TASKS)},"
    return _typed(f"the task{choice} comes first", command, task or usual, *others)


def _model_first(command: str, first: Sequence[str], others: Sequence[str]) -> str | None:
    """Return the sentence about data that stands where the model belongs, or without its flag."""
    data = [word for word in first if _is_data(word)]
    if len(first) > 2 or len(data) > 1 or any(word.startswith("--dataset") for word in others):
        return None
    if command == "measure" and (data or len(first) > 1):
        named = data[0] if data else first[1]
        model = next((word for word in first if word != named), "MODEL")
        return _typed("--dataset names the data", command, model, "--dataset", named, *others)
    if command == "predict" and data == [first[0]]:
        return _typed("the model comes first", command, *(first[1:] or ["MODEL"]), *data, *others)
    return None


def _is_data(path: str) -> bool:
    return os.path.exists(path) and not is_saved_model(path)


def _typed(reason: str, *words: str) -> str:
    return f"{reason}: type `hf-fam {one_line(shlex.join(words), 160)}`."
