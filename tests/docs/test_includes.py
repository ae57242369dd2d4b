"""The tables in the pages are the files that commands write."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import includes


@pytest.mark.parametrize("page", includes.pages(), ids=lambda page: page.name)
def test_tables_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == includes.current(text), "run `make tables`"


def test_a_changed_table_is_seen() -> None:
    name = "generated/methods.md"
    text = f"before\n\n<!-- from {name} -->\n\nold\n\n<!-- end of {name} -->\nafter\n"
    renewed = includes.current(text)
    assert "| `sam` |" in renewed and "old" not in renewed and renewed.endswith("after\n")
    assert includes.current(renewed) == renewed
