"""YAML files with the arguments of a recipe."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from ...inputs.numbers import as_number
from ...inputs.text import LONGEST_PATH, LONGEST_REASON, one_line, quote
from .. import default_configuration
from .flag_of_path import flag_of_path

# The key of a YAML file that names the task whose default settings the file starts from.
DEFAULTS = "defaults"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file, and below it the default settings of the task that its line `defaults: TASK` names.

    Raises:
        ValueError: the file is missing, broken or not a mapping, or there is no such task.
    """
    name = quote(str(path), LONGEST_PATH)
    is_yaml = path.suffix in (".yaml", ".yml")
    if is_yaml and not os.path.exists(path):
        raise ValueError(f"{name}: there is no such file.")
    if not is_yaml or not os.path.isfile(path):
        flag = flag_of_path(str(path))
        meant = "the first argument is one, or a flag (--model_name_or_path ...)."
        if flag is not None:
            meant = f"did you mean {flag} {one_line(str(path), LONGEST_PATH)}?"
        raise ValueError(f"{name} is no YAML file: {meant}")
    try:
        settings = yaml.load(path.read_bytes(), _UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: of a date, or a number of many digits
        raise ValueError(f"{name} cannot be read as YAML: {one_line(str(error), LONGEST_REASON)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{name} has to contain lines such as 'learning_rate: 2e-5'.")
    refuse_odd_settings(settings, name)
    if DEFAULTS not in settings:
        return settings
    try:
        defaults = read_yaml(default_configuration(settings.pop(DEFAULTS)))
    except ValueError as error:
        raise ValueError(f"{name}, {DEFAULTS}: {error}") from error
    return {**defaults, **settings}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key that stands twice, of which the first would have no effect."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{quote(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def refuse_odd_settings(settings: dict[Any, Any], name: str) -> None:
    """Refuse settings of a YAML file that are no names with values, lists of values or short mappings.

    Args:
        settings: what the file contains.
        name: the quoted name of the file, for messages.

    Raises:
        ValueError: names the file and the setting.
    """
    for key, value in settings.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError(f"{name}: {quote(key)} is no name of an argument, such as learning_rate.")
        if not is_small(value):
            raise ValueError(f"{name}: {key} has too many or too deep values.")
        if isinstance(value, dict):
            continue
        values = value if isinstance(value, list) else [value]
        if value == [] or any(isinstance(item, (list, dict)) for item in values):
            raise ValueError(f"{name}: {key} is {quote(value)}: give a value, or a list of values.")
        flag = next((item for item in values if isinstance(item, str) and item.startswith("-") and item != "-"), None)
        if isinstance(value, list) and flag is not None and not is_a_number(flag):
            raise ValueError(
                f"{name}: {key} contains {quote(flag)}, which would be read as a flag: leave out the dash."
            )


def is_small(value: Any, most: int = 1000, depth: int = 8) -> bool:
    """Return True if nested lists and mappings have few values; aliases of YAML make huge ones from a few lines."""
    left = most

    def visit(item: Any, level: int) -> bool:
        nonlocal left
        left -= 1
        inside = item if isinstance(item, list) else item.values() if isinstance(item, dict) else ()
        return left >= 0 and level <= depth and all(visit(entry, level + 1) for entry in inside)

    return visit(value, 0)


def is_a_number(text: str) -> bool:
    """Return True if text is a number, such as ``-1``."""
    return math.isfinite(as_number(text))


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Return the flags that set the values of a YAML file.

    Examples:
        >>> as_flags({"do_train": True, "learning_rate": "2e-5", "label_names": ["a", "b"], "seed": None})
        ['--do_train=True', '--learning_rate=2e-5', '--label_names', 'a', 'b']
    """
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value, default=str) if isinstance(value, dict) else value}")
    return flags
