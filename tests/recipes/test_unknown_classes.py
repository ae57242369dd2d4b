"""A label that the training data lacks: the message has the row, the label and what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("datasets")

import datasets

from hf_fam.data.errors import DataError
from hf_fam.recipes.common.classes import refuse_unknown_classes

NAMES = ["card_acceptance", "card_arrival", "card_delivery_estimate", "change_pin", "country_support", "exchange_rate"]


def splits(train: list[Any], **others: list[Any]) -> Any:
    parts = {"train": train, **others}
    return datasets.DatasetDict({k: datasets.Dataset.from_dict({"intent": v}) for k, v in parts.items()})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_row_label_and_remedy_are_named(split: str) -> None:
    given = splits(NAMES, **{split: ["card_arrival", None, " change_pin ", "some_new_intent", "another"]})
    with pytest.raises(DataError) as caught:
        refuse_unknown_classes(given, "intent")
    said = str(caught.value)
    assert caught.value.split == split, "which names the file"
    assert f"column 'intent': row 4 of the {split} data has the class 'some_new_intent'" in said
    assert "Correct it, or add rows of this class to the training data" in said
    shown = re.findall(r"'([^']*)'", said.partition("which has ")[2])
    assert shown == NAMES[: len(shown)], "names are whole"
    assert said.endswith(f" and {len(NAMES) - len(shown)} more.") and len(shown) > 1


def test_lists_of_labels_and_numbers() -> None:
    with pytest.raises(DataError, match="row 2 of the test data has the class 'B-LOC'"):
        refuse_unknown_classes(splits([["O", "B-PER"]], test=[["O"], ["O", "B-LOC"]]), "intent")
    with pytest.raises(DataError, match="row 3 of the test data has the class '7'"):
        refuse_unknown_classes(splits([0, 1], test=[1.0, None, 7.0]), "intent")
    refuse_unknown_classes(splits([0, 1], test=[1, -1, 0]), "intent")
    refuse_unknown_classes(splits(["a", "b"], test=["photo"]), "intent", but=["test"])
