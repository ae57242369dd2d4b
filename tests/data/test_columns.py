"""Columns that `hf-fam train` and `hf-fam measure` guess."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")

from datasets import ClassLabel, Features, Image, Value

from hf_fam.data import columns

TEXT, NUMBER, CLASS = Value("string"), Value("int64"), ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sentence2", "label", "sentence1"], ("sentence1", "sentence2")),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis")),
        (["question2", "question1"], ("question1", "question2")),
        (["sentence", "text"], ("text",)),
        (["sentence", "question"], ("sentence",)),
        (["premise", "label"], ("premise",)),
        (["review"], ("review",)),
        (["title", "body"], ()),
        ([], ()),
    ],
)
def test_usual_text_columns(names: list[str], expected: tuple[str, ...]) -> None:
    assert columns.usual_text_columns(names) == expected


def test_other_text_columns() -> None:
    features = Features({"id": NUMBER, "title": TEXT, "label": TEXT, "kind": CLASS, "body": Value("large_string")})
    assert columns.other_text_columns(features) == ["title", "body"]


def test_label_columns() -> None:
    assert columns.label_columns(Features({"kind": CLASS, "target": NUMBER, "label": NUMBER})) == [
        "label",
        "target",
        "kind",
    ]
    assert columns.label_columns(Features({"label": CLASS})) == ["label"]
    assert columns.label_columns(Features({"id": NUMBER})) == []


def test_image_columns() -> None:
    assert columns.image_columns(Features({"img": TEXT, "photo": Image()})) == ["photo", "img"]
    assert columns.image_columns(Features({"image": Image(), "label": CLASS})) == ["image"]
    assert columns.image_columns(Features({"label": CLASS})) == []
