"""What the reader of tables makes of files: the same as pandas and json for good ones, one sentence for the others."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("datasets")

from hf_fam.data.checks import require_numbers, require_values
from hf_fam.data.errors import DataError
from hf_fam.data.folders import read_folder
from hf_fam.data.tables import read_table

# No zero byte, no half surrogate pair, and no line break that a csv writer translates.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@QUICK
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_texts_of_csv_files(tmp_path: Path, rows: list[tuple[str, str]], delimiter: str, mark: bytes) -> None:
    """What the csv module wrote comes back; an empty text is a missing one."""
    rows = [(f"x{one}", f"x{other}") for one, other in rows]
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator="\n").writerows([("text", "label"), *rows])
    data = read_table(written(tmp_path, "a.csv", mark + sink.getvalue().encode()))
    assert [(row["text"], row["label"]) for row in data] == rows


@QUICK
@given(rows=st.lists(st.fixed_dictionaries({"text": TEXT}, optional={"n": st.integers(-(2**62), 2**62)}), min_size=1))
def test_json_files(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Lines and a list are the same; missing keys are None."""
    names = {name for row in rows for name in row}
    expected = [{name: row.get(name) for name in names} for row in rows]
    as_lines = "\n".join(json.dumps(row) for row in rows)
    for name, content in (("a.jsonl", as_lines), ("b.json", json.dumps(rows, indent=1)), ("c.json", as_lines)):
        assert [dict(row) for row in read_table(written(tmp_path, name, content))] == expected


def test_types_of_csv_columns(tmp_path: Path) -> None:
    values = {
        "whole": ["1", "-2", "30"], "missing": ["1", "NA", ""], "number": ["1", "2.5", "1e3"],
        "zeros": ["007", "1", "2"], "huge": ["1", "2", str(10**30)], "word": ["NA", "x", "None"],
        "mixed": ["1", "x", "2.5"], "empty": ["", "", ""],
    }  # fmt: skip
    pandas.DataFrame(values).to_csv(tmp_path / "a.csv", index=False)
    data = read_table(tmp_path / "a.csv")
    assert {name: [row[name] for row in data] for name in values} == {
        "whole": [1, -2, 30], "missing": [1, None, None], "number": [1.0, 2.5, 1000.0],
        "zeros": ["007", "1", "2"], "huge": ["1", "2", str(10**30)], "word": ["NA", "x", "None"],
        "mixed": ["1", "x", "2.5"], "empty": [None] * 3,
    }  # fmt: skip


def test_other_formats_are_those_of_pandas(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b", None], "label": pandas.Categorical(["x", "y", "x"])})
    frame.to_parquet(tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.table(frame).schema) as writer:
        writer.write_table(pa.table(frame))
    for name in ("a.parquet", "a.arrow"):
        rows = [(row["text"], row["label"]) for row in read_table(tmp_path / name)]
        assert rows == [("a", "x"), ("b", "y"), (None, "x")]


def test_only_the_named_file_is_read(tmp_path: Path) -> None:
    """Not the one beside it that a pattern would match."""
    for name, other in (("train[1].csv", "train1.csv"), ("a*b.csv", "aXb.csv"), ("a?.csv", "ab.csv")):
        written(tmp_path, other, "text,label\nother,0\nother,1\n")
        written(tmp_path, name, "text,label\nright,0\n")
        assert read_table(tmp_path / name)["text"][:] == ["right"]
        (tmp_path / name).unlink()
        with pytest.raises(DataError, match=r"^there is no such file\.$"):
            read_table(tmp_path / name)


def test_a_million_characters_and_many_rows(tmp_path: Path) -> None:
    text = "x" * 1_000_000
    data = read_table(written(tmp_path, "a.csv", f'text,label\n"{text}",0\n' + "y,1\n" * 100_000))
    assert len(data) == 100_001 and data[0]["text"] == text and data[100_000]["label"] == 1


@pytest.mark.parametrize("quoted", ['x,"never\nc,d\n', '"never,c\nx,d\n', 'x,y\n"a,b', 'a,"b""\nc,d'])
def test_open_quotes(tmp_path: Path, quoted: str) -> None:
    with pytest.raises(DataError, match="row 1|row 2"):
        read_table(written(tmp_path, "a.csv", f"text,label\n{quoted}"))
    assert len(read_table(written(tmp_path, "b.csv", 'text,label\na 5" pipe,c\n'))) == 1


def test_missing_values_are_counted_over_all_rows(tmp_path: Path) -> None:
    data = read_table(written(tmp_path, "a.csv", "text,label\n" + "".join(f"x,{k % 3 or ''}\n" for k in range(9))))
    with pytest.raises(DataError, match=r"column 'label' is empty in row 1 \(3 such places in all\)"):
        require_values(data.shuffle(seed=0).select(range(1)), "label")


@pytest.mark.parametrize("value", ["nan", "-inf", "1e20", "NaN", "Infinity"])
def test_labels_that_are_no_finite_number(tmp_path: Path, value: str) -> None:
    data = read_table(written(tmp_path, "a.csv", f"text,label\nx,0.5\nx,{value}\n"))
    with pytest.raises(DataError, match="column 'label' has no finite number in row 2"):
        require_numbers(data, "label")


def test_folders(tmp_path: Path) -> None:
    """Of tables of several kinds; the broken one is named."""
    (tmp_path / "more").mkdir()
    written(tmp_path, "train-0.csv", "text,label\na,0\n")
    written(tmp_path, "train-1.jsonl", '{"text": "b", "label": 1}\n')
    written(tmp_path / "more", "dev.tsv", "text\tlabel\nc\t1\n")
    splits = read_folder(tmp_path)
    assert {name: split["text"][:] for name, split in splits.items()} == {"train": ["a", "b"], "validation": ["c"]}
    written(tmp_path / "more", "test.parquet", b"no")
    with pytest.raises(DataError, match=r"^'more/test.parquet': the data cannot be read"):
        read_folder(tmp_path)
