"""Messages of the package, which name arguments as in Python, with the flags that a shell has."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What stands in quotes is a value. An apostrophe inside a word begins none.
_QUOTED = re.compile(r"""((?<!\w)'[^']*'|"[^"]*"|`[^`]*`)""")
# A name that is no part of a path, of an attribute or of a flag, and is not called.
_NAME = re.compile(r"(?<![\w./\\-])[a-z]\w*(?![\w/\\(-]|\.\w)")
# What follows are values, of which some are called like flags.
_CHOICES = re.compile(r"(\b[Cc]hoose (?:one of|from|none|some of)\b.*)", re.DOTALL)
# What a shell has in place of None.
_NONE = (
    (re.compile(r", or None\b"), ", or leave it out"),
    (re.compile(r", (\w+) or None\b"), r" or \1"),
    (re.compile(r"\bleave (\S+) at None\b"), r"leave out \1"),
)


def as_typed(message: str, flags: Sequence[str]) -> str:
    """Return a message with the arguments that it names as they are typed in a shell.

    Args:
        message: the message.
        flags: names of the command's flags, without their dashes. The first of two that fit is taken.

    Examples:
        >>> flags = ["fam_lambda", "fam_layer", "fam_center"]
        >>> as_typed("fam_lambda=-1.0: give a number of at least 0, or None for the default.", flags)
        '--fam_lambda=-1.0: give a number of at least 0, or leave it out for the default.'
        >>> as_typed("layer='fam_lambda' is not a module of this BertModel; did you mean 'pooler'?", flags)
        "--fam_layer='fam_lambda' is not a module of this BertModel; did you mean 'pooler'?"
        >>> as_typed("fam_center='x': give True, False or None.", flags)
        "--fam_center='x': give True or False."
    """

    def flag(match: re.Match[str]) -> str:
        name, after = match[0], match.string[match.end() :][:1]
        # The package's own functions call an argument "layer" that the command calls fam_layer or layers.
        names = (name, f"fam_{name}", f"{name}s") if after == "=" else (name,) if "_" in name or after == ":" else ()
        known = [name for name in names if name in flags]
        return f"--{min(known, key=flags.index)}" if known else match[0]

    for pattern, replacement in _NONE:
        message = pattern.sub(replacement, message)
    message, *values = _CHOICES.split(message, maxsplit=1)
    parts = _QUOTED.split(message)
    parts[::2] = [_NAME.sub(flag, part) for part in parts[::2]]
    parts[1::2] = [f"--{part[1:-1]}" if part[1:-1] in flags and part[0] == "`" else part for part in parts[1::2]]
    return "".join([*parts, *values])
