"""The page of troubleshooting lists messages that hf_fam has."""

from __future__ import annotations

import re

import pytest

from support import refusals
from support.launch import ROOT

PAGE = ROOT / "docs" / "generated" / "troubleshooting.md"


def test_the_page_has_the_messages_of_the_code() -> None:
    """A message that changed, or of which there is none any more, fails here."""
    assert PAGE.read_text(encoding="utf-8") == refusals.page(), "run `make tables`"


def test_the_page_lists_what_people_meet() -> None:
    headings = re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert 25 <= len(headings) <= 40 and len(set(headings)) == len(headings)


def test_every_message_has_a_remedy() -> None:
    parts = re.split(r"^### .+\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert [part for part in parts if not part.strip()] == []


def test_values_in_a_message_become_dots() -> None:
    (text,) = refusals.texts(refusals.ast.parse("raise ValueError(f'{name}={value!r}{unit}: give {low} or ' 'more.')"))
    assert refusals.shown(refusals.template(text)) == "...=...: give ... or more."


def test_docstrings_are_no_messages() -> None:
    tree = refusals.ast.parse('def f():\n    """Long documentation."""\n    return "a text"')
    assert [refusals.template(text) for text in refusals.texts(tree)] == ["a text"]


def test_a_message_that_is_gone_is_named() -> None:
    with pytest.raises(ValueError, match="0 messages of hf_fam contain 'no such words'"):
        refusals.message_with("no such words", refusals.messages())


def test_a_message_is_split_where_the_remedy_begins() -> None:
    message = "layer 'x' cannot be used (reason: a; b) in this training: give another one."
    assert refusals.split(message) == ("layer 'x' cannot be used (reason: a; b) in this training", "give another one.")
