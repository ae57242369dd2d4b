"""Columns of one's own files that the recipes find, and those that have to be named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict

from hf_fam.recipes.common.arguments import DataArguments, ModelArguments
from hf_fam.recipes.common.data import label_column, load_splits
from hf_fam.recipes.image_classification import image_column
from hf_fam.recipes.text_classification import TextArguments, text_columns


def splits(**columns: Any) -> DatasetDict:
    data = Dataset.from_dict({name: [value] * 2 for name, value in columns.items()})
    return DatasetDict({"train": data, "validation": data})


def texts(data: DatasetDict, **given: Any) -> tuple[str, ...]:
    return text_columns(data, TextArguments(train_file="f.csv", **given))


def test_columns_of_texts() -> None:
    assert texts(splits(text="a", label=1)) == ("text",)
    assert texts(splits(premise="a", hypothesis="b", label=1)) == ("premise", "hypothesis")
    assert texts(splits(question="a", sentence="b", label=1), task_name="qnli") == ("question", "sentence")
    assert texts(splits(sentence1="a", sentence2="b", text="c"), text_column="text") == ("text",)
    assert texts(splits(text="a", label=1), task_name="rte") == ("text",)  # of a default configuration
    assert texts(splits(comment="a", label="x")) == ("comment",)  # the only one


def test_columns_of_texts_that_have_to_be_named() -> None:
    both = splits(title="a", body="b", label=1)
    with pytest.raises(ValueError, match="no column of texts among 'title', 'body', 'label': name it with"):
        texts(both)
    assert texts(both, text_column="title, body") == ("title", "body")
    with pytest.raises(ValueError, match="give one column, or two"):
        texts(both, text_column="title,body,label")
    with pytest.raises(ValueError, match="text_column='head': the train data has no such column but 'title'"):
        texts(both, text_column="head")
    with pytest.raises(ValueError, match="no such column but 'title', 'body', 'label'; did you mean title\\?$"):
        texts(both, text_column="titel")


def test_columns_of_labels_and_images() -> None:
    assert label_column(splits(text="a", label=1, score=0.5), None) == "label"
    assert label_column(splits(text="a", intent=1), None) == "intent"
    assert label_column(splits(text="a", label=1, kind=2), "kind") == "kind"
    with pytest.raises(ValueError, match="no column of labels among 'text', 'kind': name it with label_column"):
        label_column(splits(text="a", kind=1), None)
    assert image_column(splits(img="a", label=1), None) == "img"
    with pytest.raises(ValueError, match="no column of images among 'drawing': name it with image_column"):
        image_column(splits(drawing="a"), None)


def test_files_with_tabs(tmp_path: Path) -> None:
    rows = "".join(f"a, b\t{n % 2}\n" for n in range(10))
    for name in ("train.tsv", "other.csv"):
        (tmp_path / name).write_text(f"text\tlabel\n{rows}")
    model_args = ModelArguments("some", cache_dir=str(tmp_path / "cache"))
    loaded = load_splits(DataArguments(train_file=str(tmp_path / "train.tsv")), model_args)
    assert loaded["train"].column_names == ["text", "label"] and loaded["train"][0]["text"] == "a, b"
    files = {"train_file": str(tmp_path / "train.tsv"), "validation_file": str(tmp_path / "other.csv")}
    both = load_splits(DataArguments(**files), model_args)
    assert both["validation"].features == both["train"].features and both["validation"][0]["text"] == "a, b"
