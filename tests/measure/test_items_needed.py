"""The number of items for a wanted error, against measurements with that number of items."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hf_fam.measure import FlatnessTable, measure_relative_flatness
from hf_fam.measure.findings import MeasuredModel, findings
from support.measured import cross_entropy, mlp, points


def measured(count: int, layer: str = "4", seed: int = 1, **options: object) -> FlatnessTable:
    data = points(count, seed)
    return measure_relative_flatness(mlp(), data, layer, ("trace",), loss_fn=cross_entropy, **options)


@pytest.mark.parametrize(("layer", "probes"), [("4", 1), ("2", 5)])
def test_so_many_items_give_the_wanted_error(layer: str, probes: int) -> None:
    first = measured(200, layer, probes=probes)[0]
    count = first.items_needed(first.standard_error / abs(first.kappa) / 3)
    assert count is not None and count == pytest.approx(9 * 200, abs=1)
    again = measured(count, layer, seed=2, probes=probes)[0]
    assert again.standard_error == pytest.approx(first.standard_error / 3, rel=0.15)


def test_none_where_items_are_not_the_reason() -> None:
    record = measured(50)[0]
    assert record.items_needed(2 * record.standard_error / record.kappa) is None
    assert record.items_needed(record.standard_error / record.kappa / 2) is not None
    probes = replace(record, standard_error_probes=2 * record.standard_error_items)
    assert probes.items_needed(1e-6) is None
    assert measured(1)[0].items_needed(1e-6) is None  # the error of one item is unknown
    assert replace(record, kappa=0.0).items_needed() is None
    assert replace(record, kappa=-record.kappa).items_needed(0.01) == record.items_needed(0.01)
    assert replace(record, standard_error_probes=math.nan).items_needed(0.01) == record.items_needed(0.01)


def test_tables_and_reports_say_it() -> None:
    record = replace(measured(50)[0], num_items=51, kappa=2.0, standard_error=0.4, standard_error_items=0.4)
    table = FlatnessTable([record, replace(record, layer="calm", standard_error=0.02, standard_error_items=0.02)], {})
    sentence = "4: the differences between items dominate the standard error, 20 % of kappa. About 820 items give 5 %."
    assert str(table).endswith(f"\n\n{sentence}") and "calm: " not in str(table)
    assert sentence.replace("kappa", "κ") in findings(MeasuredModel("m", table))
    assert str(table[1:]).count("\n") == 3


@pytest.mark.parametrize("wrong", [0, -0.1, math.nan, "much", None, torch.ones(2)])
def test_the_error_is_a_positive_number(wrong: object) -> None:
    with pytest.raises(ValueError, match="relative_error="):
        measured(5)[0].items_needed(wrong)  # type: ignore[arg-type]
