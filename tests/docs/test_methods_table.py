"""The table of methods is made from the methods."""

from __future__ import annotations

import pytest

from hf_fam.methods import METHODS
from hf_fam.methods.table import methods_table
from support.launch import ROOT


def test_the_table_of_methods_is_what_they_say_of_themselves() -> None:
    assert (ROOT / "docs" / "generated" / "methods.md").read_text(encoding="utf-8") == methods_table()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_described(name: str) -> None:
    kind = METHODS[name]
    assert kind.description and (kind.field is None) == (name in ("plain", "flat_logistic_regression"))
    assert name == "fam" or kind.field is None or kind.default is not None
