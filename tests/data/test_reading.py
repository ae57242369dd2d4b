"""What files of one's own may look like: delimiters, encodings, names of columns, missing values, splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("datasets")

from datasets import Dataset

from hf_fam.data.checks import require_values, without_missing
from hf_fam.data.columns import label_columns, same_column, usual_text_columns
from hf_fam.data.csv_files import find_delimiter
from hf_fam.data.errors import DataError
from hf_fam.data.labels import as_the_model_has_them, names_in_order
from hf_fam.data.splits import split_rows
from hf_fam.data.tables import read_table

ROWS = [["text", "label"], ["a, b; c", "x"], ["Größe | 3: 4", "y"]]


@pytest.mark.parametrize("sign", [",", ";", "\t", "|", "~", "^", ":", "\x01", "#"])
def test_any_delimiter(tmp_path: Path, sign: str) -> None:
    import csv

    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=sign).writerows(ROWS)
    data = read_table(path)
    assert data.column_names == ROWS[0] and data["text"] == [row[0] for row in ROWS[1:]]


@pytest.mark.parametrize(
    ("text", "sign"),
    [("text\nhello, you\n", "\t"), ("text,label\nhello; you,1\n", ","), ("text;label, or kind\na, b;1\nc;2\n", ";"),
     ("first name-of_it\nx\n", ","), ("Wie geht's? Gut!\n", ","),
     ("Question?\nreally?\n", ","), ("a#b\nx\n", ","), ("text#label\n", ",")],
)  # fmt: skip
def test_signs_in_texts_are_no_delimiters(text: str, sign: str) -> None:
    assert find_delimiter(text) == sign


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("cp1252", "cp1252"), ("latin-1", "cp1252"), ("utf-16", "utf-16"), ("utf-32", "utf-32"),
     ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be"), ("shift_jis", None), ("koi8-r", None)],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_other_encodings_are_named_and_can_be_given(
    tmp_path: Path, encoding: str, named: str | None, ending: str
) -> None:
    """The encoding that the refusal names reads the file, where one is named."""
    text = {"shift_jis": "日本語の文章です" * 20, "koi8-r": "Пишет по-русски " * 20}.get(encoding, "Grüße aus Köln")
    path = tmp_path / f"a.{ending}"
    content = f'text,label\n"{text}",a\n' if ending == "csv" else f'{{"text": "{text}", "label": "a"}}\n'
    path.write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match="UTF-8") as refused:
        read_table(path)
    said = str(refused.value)
    if named is not None:
        assert f"--encoding {named}," in said
        assert read_table(path, named)[0]["text"] == text
    assert read_table(path, encoding)[0]["text"] == text


def test_texts_alone_keep_their_commas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nhello, you\nhello; you, and you\n")
    assert read_table(tmp_path / "a.csv")["text"] == ["hello, you", "hello; you, and you"]


def test_a_line_of_lists_is_a_row(tmp_path: Path) -> None:
    """It was read as two rows of an object of columns."""
    (tmp_path / "a.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O", "X"]}\n')
    assert read_table(tmp_path / "a.jsonl")[0] == {"tokens": ["a", "b"], "tags": ["O", "X"]}


def test_encodings_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nGrüße,a\n".encode("cp1252"))
    with pytest.raises(DataError, match="there is no such encoding"):
        read_table(path, "klingon")
    with pytest.raises(DataError, match="not encoded as ascii: add --encoding cp1252"):
        read_table(path, "ascii")
    path.write_bytes(b"\xef\xbb\xbftext,label\nx,a\n")
    assert read_table(path, "utf-8").column_names == read_table(path, "utf-8-sig").column_names == ["text", "label"]


def test_columns_are_guessed_in_any_case() -> None:
    assert usual_text_columns(["Id", "Message"]) == ("Message",)
    assert usual_text_columns(["SENTENCE1", "Sentence2"]) == ("SENTENCE1", "Sentence2")
    assert usual_text_columns(["Text", "text"]) == ("text",)
    assert label_columns(dict.fromkeys(["Text", "Category"])) == ["Category"]
    assert label_columns(dict.fromkeys(["LABEL", "score"])) == ["LABEL", "score"]
    assert same_column("label", ["LABEL"]) == "LABEL" and same_column("label", ["kind"]) is None


def test_missing_values_are_counted_over_all_rows() -> None:
    data = Dataset.from_dict({"text": ["a", None, " ", "d"], "tags": [["x"], ["y"], ["z"], ["x", None]]})
    with pytest.raises(DataError, match=r"row 2 \(2 such places in all\): fill it, remove the row, or add --drop_miss"):
        require_values(data.select([0, 3]), "text")
    kept, count = without_missing(data, ["text"])
    assert (kept["text"], count) == (["a", "d"], 2)
    kept, count = without_missing(data, ["text", "tags", "not there"])
    assert (kept["text"], count) == (["a"], 3) and isinstance(kept.data.table, pa.Table)
    assert without_missing(kept, ["text"])[1] == 0
    with pytest.raises(DataError, match="every one of the 4 rows"):
        without_missing(data.add_column("label", [None] * 4), ["label"])


@pytest.mark.parametrize("seed", range(20))
def test_splits_are_stratified(seed: int) -> None:
    """Every class gives its share, within one row, and keeps a row; the parts are those of the whole."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 40, size=random.integers(2, 12))
    labels = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    fraction = float(random.uniform(0.05, 0.5))
    kept, taken = split_rows(len(labels), fraction, seed, labels)
    assert sorted([*kept, *taken]) == [*range(len(labels))]
    left, given = (Counter(labels[k] for k in rows) for rows in (kept, taken))
    for name, size in Counter(labels).items():
        assert left[name] >= 1
        assert abs(given[name] - len(taken) * size / len(labels)) <= 1 + (Counter(labels).most_common()[-1][1] == 1)
    again = split_rows(len(labels), fraction, seed, labels)
    assert [*again[0]] == [*kept] and [*again[1]] == [*taken]


def test_the_only_row_of_a_class_is_trained_on() -> None:
    """An unbalanced set put it into validation, and was then refused."""
    labels = ["a"] * 30 + ["b"]
    for seed in range(50):
        kept, taken = split_rows(31, 0.1, seed, labels)
        assert 30 in kept and len(taken) == 4


def test_the_classes_of_a_model() -> None:
    model = {"b": 0, "a": 1, "c": 2}
    assert names_in_order(model) == ["b", "a", "c"]
    assert as_the_model_has_them(["a", "b", "c"], model) == ["b", "a", "c"]
    assert as_the_model_has_them(["a", "b"], model) == ["b", "a", "c"]
    assert as_the_model_has_them(["a", "b"], model, keeps_others=False) == ["a", "b"]
    assert as_the_model_has_them(["a", "z"], model) == ["a", "z"]
    assert as_the_model_has_them(["1", "2", "3"], {"1": 0, "2": 1, "3": 2}) == ["1", "2", "3"]
    assert as_the_model_has_them(["a"], None) == as_the_model_has_them(["a"], {"a": 3}) == ["a"]
