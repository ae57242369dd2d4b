"""Docstrings, comments and messages are as plain as the pages: short sentences, the field's words, none in brackets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support import code_prose

FILES = code_prose.modules()
# Functions that begin with a noun: they are no commands.
ARTICLES = {"A", "An", "The", "This", "It"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(code_prose.PACKAGE)))
def test_docstrings_comments_and_messages_are_plain(path: Path) -> None:
    assert code_prose.faults(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(code_prose.PACKAGE)))
def test_docstrings_of_functions_begin_with_a_verb(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            first = text.split()[0].rstrip(".,;")
            is_verb = first not in ARTICLES and (not first.endswith("s") or first.endswith("ss"))
            assert is_property or is_verb, f"{node.name}: {text.splitlines()[0]}"


LONG = "It has " + "very " * 25 + "many words."


MODULE = f'''"""Short. (Another one.)"""


def f(x):
    """Return x.

    {LONG}

    Args:
        x: use so many lines.

    Raises:
        ValueError: never; {LONG}

    Examples:
        >>> f(1)  # {LONG}
    """
    raise ValueError(f"{{x}} is bad. {LONG}")


# Short. {LONG}
Y = 1  # so many more
# {" ".join(LONG.split()[:20])}
# {" ".join(LONG.split()[20:])}
# type: ignore {LONG}
'''


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(MODULE, encoding="utf-8")
    found = [fault.partition(": ")[2] for fault in code_prose.faults(path)]
    assert found == ["(Another one.)", LONG, "so many", LONG, LONG, LONG, "so many", LONG]
