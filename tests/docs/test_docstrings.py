"""Docstrings of what the reference lists: a short first line, the errors, and an example that runs as a doctest."""

from __future__ import annotations

import pytest

from support import docstrings

pytest.importorskip("scipy")
pytest.importorskip("sklearn")

LACKING = docstrings.lacking()


def test_first_lines_are_short() -> None:
    assert LACKING["first line"] == []


def test_what_is_raised_is_documented() -> None:
    assert LACKING["raises"] == []


def test_everything_has_an_example() -> None:
    assert LACKING["example"] == []


def test_every_docstring_begins_with_a_sentence_of_its_own() -> None:
    for name in docstrings.documented():
        for member_name, member in docstrings.members(docstrings.resolve(name)):
            first, _, rest = (docstrings.inspect.getdoc(member) or "").partition("\n")
            assert first.endswith((".", "...")), member_name
            assert not rest or rest.startswith("\n"), f"{member_name}: the first line goes on"


def undocumented(x: int) -> int:
    """Return x."""
    if x < 0:
        raise ValueError("x")
    return x


def test_the_checks_see_what_they_look_for() -> None:
    assert docstrings.raises_without_saying_so(undocumented) and docstrings.has_no_example(undocumented)
    undocumented.__doc__ = f"Return {'x' * 80}.\n\nRaises:\n    ValueError: x.\n\nExamples:\n    >>> 1"
    assert docstrings.first_line_is_long(undocumented)
    assert not docstrings.raises_without_saying_so(undocumented) and not docstrings.has_no_example(undocumented)
