"""Spellings of a flag that mean the same."""

from __future__ import annotations

import re

# The columns have longer names in the examples of transformers: text_column_name, text_column_names.
_COLUMN = re.compile(r"_column_names?$")


def same_flag(name: str) -> str:
    """Return the spelling that stands for all spellings of a flag.

    Dashes are underscores, and the name of a column may end in ``_name`` or ``_names``, as transformers' examples
    have it.

    Args:
        name: the flag without its value, or the field that it sets.

    Examples:
        >>> same_flag("--text-column"), same_flag("--text_column_names"), same_flag("batch-size")
        ('--text_column', '--text_column', 'batch_size')
    """
    dashes = "--" if name.startswith("--") else ""
    return dashes + _COLUMN.sub("_column", name[len(dashes) :].replace("-", "_"))


def spell_flag(word: str) -> str:
    """Return a word of a command line with the spelling of its flag that stands for all; other words as they are.

    Examples:
        >>> spell_flag("--label-column-name=kind"), spell_flag("-1"), spell_flag("a-b")
        ('--label_column=kind', '-1', 'a-b')
    """
    name, equals, value = word.partition("=")
    return f"{same_flag(name)}{equals}{value}" if word.startswith("--") else word
