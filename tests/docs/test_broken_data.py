"""docs/generated/broken_data.md says what the command answers today, for forty kinds of broken data."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from support import broken_data
from support.launch import ROOT

PAGE = ROOT / "docs" / "generated" / "broken_data.md"


def test_there_are_forty_kinds() -> None:
    assert len(broken_data.KINDS) == len({*broken_data.KINDS.values()}) == 40


def test_the_table_is_current() -> None:
    """Every case is refused in one line; the answer is that of the page. Libraries word their part of a reason."""
    rows = [line for line in broken_data.table().splitlines() if line.startswith("| ")]
    on_page = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [own_words(row) for row in rows] == [own_words(row) for row in on_page]


def own_words(row: str) -> str:
    """A row without what stands in brackets, or behind 'cannot be read:' and 'is broken', which is a library's."""
    return re.sub(r"(cannot be read|broken( JSON)?): .*|\([^)]*\)", "", row)
