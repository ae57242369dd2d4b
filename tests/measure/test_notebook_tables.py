"""What notebooks show of measurements."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from hf_fam.measure.results import FlatnessTable, LayerFlatness
from hf_fam.measure.robustness import FeatureRobustness

NASTY = "<script>alert(1)</script>"
RECORD = LayerFlatness(
    NASTY, 2.0, 0.1, 0.1, 0.0, None, None, None, None, None, 1.5, 4, 3, 60, 0.7, "closed_form", "rows", 0, 0, 0.25
)
CURVE = FeatureRobustness(NASTY, "orthogonal", (0.1,), (0.1,), (0.01,), (0.1,), (0.0,), 2.0, 4, 0.7, 60, 2, None)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


@pytest.mark.parametrize("result", [RECORD, FlatnessTable([RECORD], {}), CURVE], ids=["layer", "table", "curve"])
def test_a_table_of_escaped_names(result: LayerFlatness | FlatnessTable | FeatureRobustness) -> None:
    page = result._repr_html_()
    assert "table" in Tags(page).seen and "script" not in Tags(page).seen and "&lt;script&gt;" in page
    assert "60 items" in page
