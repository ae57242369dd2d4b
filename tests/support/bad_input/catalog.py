# ruff: noqa: E501
"""Inputs that a user may give by mistake: of data, images, arguments and commands, with what should happen.

Each case has a function that writes its files into a folder and returns the command line. `names` are words of which the
refusal must contain one, at best the argument or the file.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

REFUSED, ACCEPTED = "refused", "accepted"


@dataclass(frozen=True)
class Case:
    """An input.

    Attributes:
        kind: data, images, commands or files.
        name: of the case.
        make: writes files into a folder and returns the command line, without model and folders.
        names: words of which a refusal must contain one.
        expected: refused or accepted.
        trains: whether the training must run for the verdict.
    """

    kind: str
    name: str
    make: Callable[[Path, dict[str, str]], list[str]]
    names: tuple[str, ...] = ()
    expected: str = REFUSED
    trains: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


@dataclass
class Catalog:
    """A list of cases that is filled by functions."""

    cases: list[Case] = field(default_factory=list)

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.cases.append(Case(*args, **kwargs))


def rows(count: int = 12, label: Callable[[int], Any] = lambda k: "ab"[k % 2]) -> str:
    return "text,label\n" + "".join(f"some text {k},{label(k)}\n" for k in range(count))


def train(task: str, folder: Path, models: dict[str, str], given: dict[str, Any]) -> list[str]:
    """The command line of a short training; a value of None is a bare flag, one of () leaves the flag out."""
    model = models["image" if task == "image_classification" else "lm" if task == "causal_lm" else "text"]
    usual = {
        "model_name_or_path": model, "output_dir": folder / "out", "cache_dir": folder / "cache", "max_steps": 1,
        "use_cpu": None, "disable_tqdm": "True", "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    words = ["train", task]
    for name, value in {**usual, **given}.items():
        if value != ():
            words += [f"--{name}"] if value is None else [f"--{name}={value}"]
    return words


def measure(folder: Path, models: dict[str, str], data: Any, *more: str, model: str = "classifier") -> list[str]:
    return ["measure", models[model], "--dataset", str(data), "--items", "8", *more]


CATALOG = Catalog()


def data_case(
    name: str, file: str, content: bytes | str, *names: str, task: str = "text_classification", **more: Any
) -> None:
    """A training file of some content, for train and for measure."""
    given = more.pop("given", {})
    expected = more.pop("expected", REFUSED)

    def write(folder: Path) -> Path:
        path = folder / file
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    CATALOG.add(
        "data",
        name,
        lambda folder, models: train(task, folder, models, {"train_file": write(folder), **given}),
        (file, *names) if expected == REFUSED else names,
        expected,
    )
    if task == "text_classification" and not given and more.pop("measured", True):
        CATALOG.add(
            "data", f"{name}-measured", lambda folder, models: measure(folder, models, write(folder)),
            (file, *names) if expected == REFUSED else names, expected,
        )  # fmt: skip


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


ROWS = rows()
TABLE = pa.table({"text": [f"some text {k}" for k in range(12)], "label": ["a", "b"] * 6})
OBJECTS = [{"text": f"some text {k}", "label": "ab"[k % 2]} for k in range(12)]


def lines(objects: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in objects)


# --- tables -----------------------------------------------------------------------------------------------------------
for ending in ("csv", "tsv", "json", "jsonl", "parquet", "arrow"):
    data_case(f"empty-{ending}", f"bad.{ending}", b"")
    data_case(f"newlines-{ending}", f"bad.{ending}", b"\n\n\n")
    data_case(f"garbage-{ending}", f"bad.{ending}", bytes(range(256)) * 40)
    data_case(f"zeros-{ending}", f"bad.{ending}", b"\0" * 4000)
    data_case(f"png-{ending}", f"bad.{ending}", b"\x89PNG\r\n\x1a\n" + b"\0\1\2\3" * 500)
data_case("header-only", "bad.csv", "text,label\n")
data_case("ragged-more", "bad.csv", ROWS + "one,two,three\n")
data_case("ragged-less", "bad.csv", ROWS + "one\n")
data_case("ragged-all-more", "bad.csv", "text,label\n" + "a,b,c\n" * 12)
data_case("open-quote", "bad.csv", ROWS + '"never closed,a\n' + "x,y\n" * 5)
data_case("open-quote-first", "bad.csv", '"text,label\n' + "x,y\n" * 5)
data_case("utf-16", "bad.csv", ROWS.encode("utf-16"), "UTF-16")
data_case("utf-16-without-mark", "bad.csv", ROWS.encode("utf-16-le"))
data_case("utf-32", "bad.csv", ROWS.encode("utf-32"))
data_case("latin-1", "bad.csv", ROWS.replace("some", "caf\xe9").encode("latin-1"), "UTF-8")
data_case("utf-8-mark", "good.csv", b"\xef\xbb\xbf" + ROWS.encode(), expected=ACCEPTED, measured=False)
data_case(
    "utf-8-mark-jsonl", "good.jsonl", b"\xef\xbb\xbf" + lines(OBJECTS).encode(), expected=ACCEPTED, measured=False
)
data_case("semicolons", "good.csv", ROWS.replace(",", ";"), expected=ACCEPTED, measured=False)
data_case("bars", "good.csv", ROWS.replace(",", "|"), expected=ACCEPTED, measured=False)
data_case("tabs-in-csv", "good.csv", ROWS.replace(",", "\t"), expected=ACCEPTED, measured=False)
data_case("commas-in-tsv", "good.tsv", ROWS, expected=ACCEPTED, measured=False)
data_case("carriage-returns", "good.csv", ROWS.replace("\n", "\r\n"), expected=ACCEPTED, measured=False)
data_case("old-mac", "good.csv", ROWS.replace("\n", "\r"), expected=ACCEPTED, measured=False)
data_case("zero-byte", "bad.csv", ROWS.replace("text 3", "te\0xt 3"))
data_case("escape", "bad.csv", rows(label=lambda k: "\x1b[31mred" if k == 3 else "ab"[k % 2]), expected=ACCEPTED,
          measured=False)  # fmt: skip
data_case("duplicate-columns", "bad.csv", "text,label,label\n" + "x,a,b\n" * 12)
data_case("no-text-column", "bad.csv", "first,second,label\n" + "x,y,a\nx,y,b\n" * 6, "'first'")
data_case("no-label-column", "bad.csv", "text,kind\n" + "x,1\ny,2\n" * 6, "'kind'")
data_case("nameless-columns", "bad.csv", ",\n" + "x,a\ny,b\n" * 6)
data_case("one-class", "bad.csv", rows(label=lambda k: "a"), "'label'", measured=False)
data_case("one-row", "bad.csv", rows(1), measured=False)
data_case("two-rows", "bad.csv", rows(2), measured=False)
data_case("each-its-own-class", "bad.csv", rows(label=lambda k: k), measured=False)
data_case("empty-label", "bad.csv", rows(label=lambda k: "" if k == 3 else "ab"[k % 2]), "row 4")
data_case("blank-label", "bad.csv", rows(label=lambda k: "  " if k == 3 else "ab"[k % 2]), "row 4")
data_case("labels-with-spaces", "good.csv", rows(20, label=lambda k: " ab"[k % 2 + 1] + " " * (k % 3)), expected=ACCEPTED,
          measured=False)  # fmt: skip
data_case(
    "nan-label", "bad.csv", rows(label=lambda k: "nan" if k == 3 else k / 2), "row 4", given={"do_regression": None}
)
data_case("nan-label-class", "bad.csv", rows(label=lambda k: "NaN" if k == 3 else k % 2), "row 4")
data_case("infinite-label", "bad.csv", rows(label=lambda k: "inf" if k == 3 else k / 2), "row 4",
          given={"do_regression": None})  # fmt: skip
data_case("infinite-label-json", "bad.jsonl", '{"text": "x", "label": Infinity}\n' + lines(
    [{"text": "y", "label": k / 2} for k in range(12)]), "row 1", given={"do_regression": None})  # fmt: skip
data_case("nan-label-json", "bad.jsonl", '{"text": "x", "label": NaN}\n' + lines(
    [{"text": "y", "label": k / 2} for k in range(12)]), "row 1", given={"do_regression": None})  # fmt: skip
data_case("word-as-number", "bad.csv", rows(label=lambda k: "much" if k == 3 else k / 2), "row 4",
          given={"do_regression": None})  # fmt: skip
data_case(
    "huge-label", "bad.csv", rows(label=lambda k: "1e300" if k == 3 else k / 2), "row 4", given={"do_regression": None}
)
data_case(
    "huge-integer", "bad.csv", rows(label=lambda k: 10**30 if k == 3 else k), "row 4", given={"do_regression": None}
)
data_case("huge-integer-json", "bad.jsonl", lines([{"text": "x", "label": 10**30 if k == 3 else k} for k in range(12)]),
          "row 4", "line 4", given={"do_regression": None})  # fmt: skip
data_case("texts-that-are-numbers", "bad.csv", "text,label\n" + "".join(f"{k},{'ab'[k % 2]}\n" for k in range(12)),
          "'text'", "text_column")  # fmt: skip
for name, content in {
    "null": "null", "scalar": "3", "string": '"text"', "true": "true", "empty-list": "[]", "empty-object": "{}",
    "list-of-scalars": "[1, 2, 3]", "list-of-lists": '[["a", "b"], ["c", "d"]]', "list-of-nulls": "[null, null]",
    "empty-objects": "[{}, {}]", "cut-off": json.dumps(OBJECTS)[:-30], "deep": "[" * 100_000, "deep-closed": "[" * 5000
    + "]" * 5000, "deep-object": '{"a":' * 100_000, "two-values": "[] []", "nan": "NaN", "comment": "// no\n[]",
}.items():  # fmt: skip
    data_case(f"json-{name}", "bad.json", content)
    data_case(f"jsonl-{name}", "bad.jsonl", content + "\n")
data_case("json-list", "good.json", json.dumps(OBJECTS), expected=ACCEPTED, measured=False)
data_case("json-lines-in-json", "good.json", lines(OBJECTS), expected=ACCEPTED, measured=False)
data_case("json-other-keys-later", "good.jsonl", lines([{"text": "first", "label": "a"}, *[{**r, "id": 3} for r in OBJECTS]]),
          expected=ACCEPTED, measured=False)  # fmt: skip
data_case("json-nested-text", "bad.jsonl", lines([{"text": {"a": "x"}, "label": k % 2} for k in range(12)]), "'text'")
data_case(
    "json-mixed-label", "bad.jsonl", lines([{"text": "x", "label": k if k % 2 else "a"} for k in range(12)]), "label"
)
data_case(
    "json-mixed-text", "bad.jsonl", lines([{"text": k if k % 2 else "a", "label": k % 2} for k in range(12)]), "text"
)
data_case("json-mixed-far-apart", "bad.jsonl", lines(
    [{"text": "x" * 100, "label": k % 2 if k < 30_000 else "a"} for k in range(30_100)]), "label")  # fmt: skip
data_case("json-list-label", "bad.jsonl", lines([{"text": "x", "label": [k]} for k in range(12)]), "'label'")
data_case("json-object-label", "bad.jsonl", lines([{"text": "x", "label": {"a": k}} for k in range(12)]), "'label'")
data_case("json-null-label", "bad.jsonl", lines([{"text": "x", "label": None if k == 3 else k % 2} for k in range(12)]),
          "row 4")  # fmt: skip
data_case("json-all-null", "bad.jsonl", lines([{"text": None, "label": None}] * 12), "'text'", "'label'")
data_case("json-surrogate", "bad.jsonl", lines([{"text": "\ud800", "label": k % 2} for k in range(12)]))
data_case("json-broken-line", "bad.jsonl", lines(OBJECTS) + '{"text": "x", \n', "line 13")
data_case("parquet-no-rows", "bad.parquet", parquet(TABLE.slice(0, 0)))
data_case("parquet-no-columns", "bad.parquet", parquet(pa.table({})))
data_case("parquet-cut-off", "bad.parquet", parquet(TABLE)[:-20])
data_case("parquet-damaged", "bad.parquet", parquet(TABLE)[:60] + b"\xff" * 40 + parquet(TABLE)[100:])
data_case("parquet-nan-label", "bad.parquet", parquet(
    TABLE.set_column(1, "label", pa.array([float("nan"), *map(float, range(11))]))), "row 1")  # fmt: skip
data_case("parquet-dates-as-labels", "bad.parquet", parquet(
    TABLE.set_column(1, "label", pa.array(range(12), pa.timestamp("s")))), "'label'")  # fmt: skip
data_case(
    "parquet-bytes-as-text", "bad.parquet", parquet(TABLE.set_column(0, "text", pa.array([b"\xff"] * 12))), "'text'"
)
data_case("parquet-categories", "good.parquet", parquet(
    TABLE.set_column(1, "label", TABLE["label"].combine_chunks().dictionary_encode())), expected=ACCEPTED,
    measured=False)  # fmt: skip
data_case("long-texts", "good.csv", "text,label\n" + "".join(f"{'word ' * 200_000},{'ab'[k % 2]}\n" for k in range(4)) + ROWS[11:],
          expected=ACCEPTED, measured=False)  # fmt: skip
data_case("unknown-ending", "bad.txt", ROWS)
data_case("no-ending", "bad", ROWS)
data_case("glob", "a[1].csv", ROWS, expected=ACCEPTED, measured=False)
data_case("glob-star", "a*b.csv", ROWS, expected=ACCEPTED, measured=False)
data_case("glob-question", "a?b.csv", ROWS, expected=ACCEPTED, measured=False)
data_case("double-colon", "x::y.csv", ROWS, expected=ACCEPTED, measured=False)
data_case("scheme", "s3:x.csv", ROWS, expected=ACCEPTED, measured=False)
data_case("escape-in-name", "\x1b[31mbad.csv", "text,label\n", "bad.csv")


def two_files(folder: Path, asked: str, other: str) -> Path:
    """A file that is asked for, with 12 rows, and one that a glob would match, with 30."""
    (folder / asked).write_text(rows(12))
    (folder / other).write_text(rows(30))
    return folder / asked


def with_files(given: dict[str, Any], files: dict[str, bytes | str]) -> Callable[[Path, dict[str, str]], list[str]]:
    """A text classification with some files in its folder; values that name them are made paths."""

    def make(folder: Path, models: dict[str, str]) -> list[str]:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths = {k: folder / v if isinstance(v, str) and os.path.exists(folder / v) else v for k, v in given.items()}
        return train("text_classification", folder, models, paths)

    return make


for name, given, files, names, expected in (
    ("unknown-class-in-validation", {"train_file": "a.csv", "validation_file": "b.csv"},
     {"a.csv": ROWS, "b.csv": rows(label=lambda k: "z")}, ("b.csv", "validation"), REFUSED),
    ("unknown-class-in-test", {"train_file": "a.csv", "test_file": "b.csv", "do_predict": None},
     {"a.csv": ROWS, "b.csv": rows(label=lambda k: "z")}, ("b.csv", "test"), REFUSED),
    ("other-columns-in-validation", {"train_file": "a.csv", "validation_file": "b.csv"},
     {"a.csv": ROWS, "b.csv": "words,kind\nx,y\n"}, ("validation",), REFUSED),
    ("other-columns-in-test", {"train_file": "a.csv", "test_file": "b.csv", "do_predict": None},
     {"a.csv": ROWS, "b.csv": "words,kind\nx,y\n"}, ("test",), REFUSED),
    ("other-format-in-validation", {"train_file": "a.csv", "validation_file": "b.jsonl"},
     {"a.csv": rows(20), "b.jsonl": lines(OBJECTS)}, (), ACCEPTED),
    ("empty-validation", {"train_file": "a.csv", "validation_file": "b.csv"}, {"a.csv": ROWS, "b.csv": ""}, ("b.csv",), REFUSED),
    ("file-is-a-folder", {"train_file": "x.csv"}, {"x.csv/y": ""}, ("train_file",), REFUSED),
    ("folder-without-data", {"data_dir": "d"}, {"d/readme.txt": "hello"}, ("data_dir",), REFUSED),
    ("empty-folder", {"data_dir": "d"}, {"d/e/f": ""}, ("data_dir",), REFUSED),
    ("folder-with-a-broken-table", {"data_dir": "d"}, {"d/train.csv": ROWS, "d/test.csv": b"\xff\xfe\0"}, ("test.csv",), REFUSED),
    ("folder-of-tables", {"data_dir": "d"}, {"d/train.csv": ROWS, "d/validation.csv": ROWS}, (), ACCEPTED),
    ("folder-with-glob", {"data_dir": "d[1]*"}, {"d[1]*/train.csv": ROWS, "d[1]*/validation.csv": ROWS}, (), ACCEPTED),
    ("folder-is-a-file", {"data_dir": "d"}, {"d": ""}, ("data_dir",), REFUSED),
    ("no-such-file", {"train_file": "nowhere.csv"}, {}, ("nowhere.csv",), REFUSED),
    ("zero-byte-in-a-name", {"train_file": "no\0where.csv"}, {}, ("train_file",), REFUSED),
    ("long-name", {"train_file": "x" * 5000 + ".csv"}, {}, ("train_file",), REFUSED),
    ("no-name", {"train_file": ""}, {}, ("train_file",), REFUSED),
):  # fmt: skip
    CATALOG.add("data", name, with_files(given, files), names, expected)


def tagged(objects: list[Any]) -> str:
    return lines([{"tokens": ["a", "b"], "ner_tags": ["O", "X"]}] * 8 + objects)


for name, row, names in (
    ("empty-tag", {"tokens": ["a", "b"], "ner_tags": ["O", None]}, ("row 9",)),
    ("blank-tag", {"tokens": ["a", "b"], "ner_tags": ["O", ""]}, ("row 9",)),
    ("object-tag", {"tokens": ["a"], "ner_tags": [{"x": 1}]}, ("ner_tags",)),
    ("list-tag", {"tokens": ["a"], "ner_tags": [["O"]]}, ("ner_tags",)),
    ("tags-no-list", {"tokens": ["a"], "ner_tags": "O"}, ("ner_tags",)),
    ("words-no-list", {"tokens": "a", "ner_tags": ["O"]}, ("tokens",)),
    ("empty-word", {"tokens": ["a", None], "ner_tags": ["O", "O"]}, ("row 9",)),
    ("fewer-tags", {"tokens": ["a", "b"], "ner_tags": ["O"]}, ("row 9",)),
    ("no-tags", {"tokens": ["a", "b"], "ner_tags": None}, ("row 9",)),
    ("number-words", {"tokens": [1, 2], "ner_tags": ["O", "O"]}, ("tokens",)),
):
    data_case(f"ner-{name}", "bad.jsonl", tagged([row]), *names, task="token_classification",
              given={"label_column": "ner_tags", "dataset_name": ()})  # fmt: skip
for name, tags, names in (
    ("one-class", ["O", "O"], ("ner_tags",)), ("ignored", [0, -100], ("ner_tags",)), ("floats", [0.5, 1.5], ("ner_tags",)),
    ("whole-floats", [0.0, 1.0], ("ner_tags",)), ("nan", [0.0, float("nan")], ("ner_tags",)), ("empty-rows", [], ("ner_tags",)),
    ("objects", [{"a": 1}, {"a": 2}], ("ner_tags",)),
):  # fmt: skip
    data_case(f"ner-{name}", "bad.jsonl", lines([{"tokens": ["a", "b"][: len(tags)], "ner_tags": tags}] * 12), *names,
              task="token_classification", given={"label_column": "ner_tags"})  # fmt: skip
for name, content, names in (
    ("numbers", lines([{"text": 3}] * 12), ("'text'",)),
    ("objects", lines([{"text": {"a": "x"}}] * 12), ("'text'",)),
    ("messages-of-text", lines([{"messages": "hello"}] * 12), ("'messages'",)),
    ("messages-without-role", lines([{"messages": [{"content": "x"}]}] * 12), ("'messages'",)),
    ("messages-without-template", lines([{"messages": [{"role": "user", "content": "x"}]}] * 12), ("template",)),
    ("number-prompts", lines([{"prompt": 1, "completion": 2}] * 12), ("'prompt'",)),
    ("no-columns-of-texts", lines([{"words": "x"}] * 12), ("'words'",)),
    ("empty-texts", lines([{"text": ""}] * 12), ("text",)),
):
    data_case(f"lm-{name}", "bad.jsonl", content, *names, task="causal_lm")


# --- images -----------------------------------------------------------------------------------------------------------
def picture(folder: Path, name: str, seed: int = 0, **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 8) -> Path:
    for name in classes:
        for k in range(count):
            picture(folder, f"{name}/{k}.png", seed=k)
    return folder


def png() -> bytes:
    import io

    sink = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def image_case(name: str, change: Callable[[Path], Any], *names: str, expected: str = REFUSED, **given: Any) -> None:
    """A folder of pictures, changed; given values that name something in the folder are made paths."""

    def make(folder: Path, models: dict[str, str]) -> list[str]:
        pictures(folder / "photos")
        change(folder)
        flags = {"train_dir": "photos", **given}
        flags = {k: folder / v if isinstance(v, str) and v else v for k, v in flags.items()}
        return train("image_classification", folder, models, flags)

    CATALOG.add("images", name, make, names, expected)


def broken(content: bytes, name: str = "photos/cat/bad.png") -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


PNG = png()
for name, content in {
    "empty": b"", "text": b"hello", "zeros": b"\0" * 500, "cut-off": PNG[:-25], "cut-header": PNG[:20],
    "html": b"<html><body>404</body></html>", "damaged": PNG[:45] + b"\xff" * 8 + PNG[53:],
    "huge": PNG[:16] + struct.pack(">II", 60_000, 60_000) + PNG[24:],
}.items():  # fmt: skip
    image_case(f"picture-{name}", broken(content), "bad.png")
    image_case(f"jpeg-{name}", broken(content, "photos/dog/bad.jpg"), "bad.jpg")
image_case("cut-off-jpeg", lambda f: broken(
    picture(f, "x.jpg", quality=95).read_bytes()[:-100], "photos/cat/bad.jpg")(f), "bad.jpg")  # fmt: skip
image_case("broken-validation", lambda f: (pictures(f / "more"), broken(b"no", "more/cat/bad.png")(f)), "bad.png",
           validation_dir="more")  # fmt: skip
image_case("broken-test", lambda f: (pictures(f / "more"), broken(b"no", "more/cat/bad.png")(f)), "bad.png",
           test_dir="more", do_predict=None)  # fmt: skip
image_case("one-class", lambda f: pictures(f / "one", ("cat",)), "train_dir", "one", train_dir="one")
image_case("picture-in-the-root", lambda f: picture(f, "photos/9.png"), "9.png")
image_case("only-in-the-root", lambda f: picture(f, "flat/9.png"), "9.png", "train_dir", train_dir="flat")
image_case("dots", lambda f: pictures(f / "photos", ("..a",)), "..a", ignore_mismatched_sizes=None)
image_case("no-pictures", lambda f: (f / "none" / "cat").mkdir(parents=True), "none", train_dir="none")
image_case("empty-class", lambda f: (f / "photos" / "bird").mkdir(), "bird")
image_case(
    "class-of-other-files",
    lambda f: ((f / "photos" / "bird").mkdir(), (f / "photos/bird/x.txt").write_text("x")),
    "bird",
)
image_case("glob-in-a-folder", lambda f: pictures(f / "p[1]*"), expected=ACCEPTED, train_dir="p[1]*")
image_case("glob-in-a-class", lambda f: pictures(f / "p", ("a[1]", "b*")), expected=ACCEPTED, train_dir="p")
image_case("double-colon", lambda f: pictures(f / "x::y"), expected=ACCEPTED, train_dir="x::y")
image_case("unknown-class", lambda f: pictures(f / "more", ("bird",)), "bird", validation_dir="more")
image_case("folder-is-a-file", lambda f: (f / "flat").write_text("x"), "train_dir", train_dir="flat")
image_case("truncated-folder-name", lambda f: None, "train_dir", train_dir="x" * 300)


def image_table(
    name: str, file: str, content: Callable[[Path], bytes | str], *names: str, expected: str = REFUSED
) -> None:
    def make(folder: Path, models: dict[str, str]) -> list[str]:
        value = content(folder)
        (folder / file).write_bytes(value if isinstance(value, bytes) else value.encode())
        return train("image_classification", folder, models, {"train_file": folder / file})

    CATALOG.add("images", f"table-{name}", make, (file, *names), expected)
    CATALOG.add(
        "images", f"table-{name}-measured",
        lambda folder, models: measure(folder, models, train_file_of(make(folder, models)), model="image"),
        (file, *names), expected,
    )  # fmt: skip


def train_file_of(words: list[str]) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith("--train_file="))


def image_rows(*cells: Any) -> str:
    return "image,label\n" + "".join(f"{cell},{'cat' if k % 2 else 'dog'}\n" for k, cell in enumerate(cells))


def with_bytes(*cells: bytes | None) -> bytes:
    column = pa.array([None if c is None else {"bytes": c, "path": None} for c in cells])
    return parquet(pa.table({"image": column, "label": ["dog" if k % 2 == 0 else "cat" for k in range(len(cells))]}))


def paths(folder: Path, count: int = 12) -> list[str]:
    pictures(folder / "p", count=count // 2)
    return [str(folder / "p" / name / f"{k}.png") for k in range(count // 2) for name in ("dog", "cat")]


image_table("paths", "good.csv", lambda f: image_rows(*paths(f)), expected=ACCEPTED)
image_table("text", "bad.csv", lambda f: image_rows(*["a cat"] * 12), "row 1")
image_table("number", "bad.csv", lambda f: image_rows(*range(12)), "'image'")
image_table("missing-path", "bad.csv", lambda f: image_rows(*paths(f)[:-1], "nowhere.png"), "row 12")
image_table("address", "bad.csv", lambda f: image_rows(*paths(f)[:-1], "http://localhost:9/x.png"), "row 12")
image_table("empty-path", "bad.csv", lambda f: image_rows(*paths(f)[:-1], ""), "row 12")
image_table("bytes", "good.parquet", lambda f: with_bytes(*[PNG] * 12), expected=ACCEPTED)
image_table("null", "bad.parquet", lambda f: with_bytes(*[PNG] * 11, None), "row 12")
image_table("garbage", "bad.parquet", lambda f: with_bytes(*[PNG] * 11, b"garbage"), "row 12")
image_table("empty-bytes", "bad.parquet", lambda f: with_bytes(*[PNG] * 11, b""), "row 12")
image_table("cut-off", "bad.parquet", lambda f: with_bytes(*[PNG] * 11, PNG[:-25]), "row 12")
image_table("no-image-column", "bad.csv", lambda f: "words,label\n" + "x,cat\ny,dog\n" * 6, "'words'")
image_table("null-label", "bad.csv", lambda f: image_rows(*paths(f)).replace("cat\n", "\n", 1), "row 2", "'label'")


# --- commands ---------------------------------------------------------------------------------------------------------
def command_case(
    name: str, *names: str, task: str = "text_classification", expected: str = REFUSED, **given: Any
) -> None:
    """A training on good data with some flags."""

    def make(folder: Path, models: dict[str, str]) -> list[str]:
        if task == "image_classification":
            flags: dict[str, Any] = {"train_dir": pictures(folder / "photos")}
        else:
            (folder / "good.csv").write_text(rows())
            flags = {"train_file": folder / "good.csv"}
        return train(task, folder, models, {**flags, **given})

    CATALOG.add("commands", name, make, names, expected)


NUMBERS = ("learning_rate", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "num_train_epochs",
           "warmup_steps", "label_smoothing_factor", "fam_lambda", "fam_warmup_steps", "train_val_split", "sam_rho",
           "lr_gamma", "lr_milestones")  # fmt: skip
for flag in NUMBERS:
    for value in ("nan", "inf", "-1", "1e400", "word", ""):
        if (flag, value) == ("num_train_epochs", "-1"):
            continue
        command_case(f"{flag}-{value}", flag, **{flag: value}, max_steps=() if flag == "num_train_epochs" else 1)
WHOLE = ("max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "seed",
         "data_seed", "logging_steps", "save_steps", "eval_steps", "save_total_limit", "dataloader_num_workers",
         "max_train_samples", "max_eval_samples", "max_predict_samples", "max_seq_length", "fam_probes",
         "eval_accumulation_steps", "eval_delay", "torch_empty_cache_steps", "dataloader_prefetch_factor")  # fmt: skip
for flag in WHOLE:
    for value in ("0", "-3", "99999999999999999999999", "1.5x", "nan"):
        if value == "0" and flag in (
            "seed",
            "data_seed",
            "dataloader_num_workers",
            "eval_delay",
            "max_steps",
            "eval_steps",
        ):
            continue
        more: dict[str, Any] = {"do_predict": None, "test_file": ()} if flag == "never" else {}
        if flag in ("save_steps", "eval_steps"):
            more = {flag.replace("steps", "strategy"): "steps"}
        command_case(f"{flag}-{value}", flag, **{**more, flag: value})
for name, names, given in (
    ("reporter", ("report_to",), {"report_to": "carrier_pigeon"}),
    ("reporter-missing", ("report_to",), {"report_to": "comet_ml"}),
    ("optimizer", ("optim",), {"optim": "magic"}),
    ("optimizer-missing", ("optim",), {"optim": "galore_adamw"}),
    ("schedule", ("lr_scheduler_type",), {"lr_scheduler_type": "magic"}),
    ("schedule-arguments", ("lr_scheduler_kwargs",), {"lr_scheduler_kwargs": '{"foo": 1}'}),
    ("schedule-arguments-broken", ("lr_scheduler_kwargs",), {"lr_scheduler_kwargs": "{foo"}),
    ("optimizer-arguments", ("optim_args",), {"optim_args": "foo"}),
    ("metric", ("metric_for_best_model",), {"metric_for_best_model": "beauty", "load_best_model_at_end": None,
                                            "eval_strategy": "epoch", "save_strategy": "epoch"}),
    ("strategies", ("load_best_model_at_end",), {"load_best_model_at_end": None, "save_strategy": "epoch"}),
    ("eval-strategy", ("eval_strategy",), {"eval_strategy": "magic"}),
    ("log-level", ("log_level",), {"log_level": "magic"}),
    ("fsdp", ("fsdp", "FSDP"), {"fsdp": "full_shard"}),
    ("deepspeed", ("deepspeed",), {"deepspeed": "nowhere.json"}),
    ("accelerator-file", ("accelerator_config",), {"accelerator_config": "nowhere.json"}),
    ("accelerator-key", ("accelerator_config",), {"accelerator_config": '{"foo": 1}'}),
    ("neftune", ("neftune_noise_alpha",), {"neftune_noise_alpha": "nan"}),
    ("attention", ("attn_implementation",), {"attn_implementation": "magic"}),
    ("no-model", ("no/such/model",), {"model_name_or_path": "no/such/model"}),
    ("model-is-a-file", ("catalog.py",), {"model_name_or_path": __file__}),
    ("model-of-nothing", ("model_name_or_path", "''"), {"model_name_or_path": ""}),
    ("no-tokenizer", ("no/such/tokenizer",), {"tokenizer_name": "no/such/tokenizer"}),
    ("layer", ("layer",), {"fam_layer": "nowhere"}),
    ("layer-embedding", ("layer",), {"fam_layer": "bert.embeddings.word_embeddings"}),
    ("layer-norm", ("layer",), {"fam_layer": "bert.embeddings.LayerNorm"}),
    ("layer-container", ("layer",), {"fam_layer": "bert.encoder"}),
    ("layer-of-nothing", ("layer",), {"fam_layer": ""}),
    ("layer-long", ("layer",), {"fam_layer": "x" * 5000}),
    ("estimator", ("fam_estimator",), {"fam_estimator": "magic"}),
    ("estimator-long", ("fam_estimator",), {"fam_estimator": "x" * 5000}),
    ("method-long", ("method",), {"method": "x" * 5000}),
    ("unknown-flag", ("lerning_rate",), {"lerning_rate": "1"}),
    ("unknown-flag-long", ("x" * 20,), {"x" * 5000: "1"}),
    ("unknown-flag-of-escapes", ("a\\x1b[31mb",), {"a\x1b[31mb": "1"}),
    ("resume-nowhere", ("resume_from_checkpoint",), {"resume_from_checkpoint": "nowhere"}),
    ("resume-last", ("resume_from_checkpoint",), {"resume_from_checkpoint": "last"}),
    ("text-column", ("text_column",), {"text_column": "x" * 5000}),
    ("three-text-columns", ("text_column",), {"text_column": "a,b,c"}),
    ("label-column", ("label_column",), {"label_column": "nope"}),
    ("text-as-label", ("'text'",), {"label_column": "text", "do_regression": None}),
    ("task-name", ("task_name",), {"task_name": "glue"}),
    ("boolean", ("do_train",), {"do_train": "perhaps"}),
    ("nothing-to-do", ("do_train",), {"do_train": "False", "do_eval": "False"}),
    ("predict-without-data", ("test_file",), {"do_predict": None}),
    ("milestones", ("lr_milestones",), {"lr_milestones": "2"}),
    ("push-offline", ("push_to_hub",), {"push_to_hub": None}),
    ("liger", ("use_liger_kernel",), {"use_liger_kernel": None}),
    ("dynamo", ("torch_compile",), {"torch_compile": None}),
    ("compile-backend", ("torch_compile_backend",), {"torch_compile_backend": "magic", "fam_lambda": "0"}),
    ("compile-mode", ("torch_compile_mode",), {"torch_compile_mode": "magic", "fam_lambda": "0"}),
    ("jit-mode", ("debug",), {"debug": "magic"}),
    ("cache-is-a-file", ("cache_dir",), {"cache_dir": __file__}),
    ("output-is-a-file", ("output_dir",), {"output_dir": __file__}),
    ("output-below-a-file", ("output_dir",), {"output_dir": f"{__file__}/x"}),
    ("output-in-proc", ("output_dir",), {"output_dir": "/proc/x"}),
    ("output-long", ("output_dir",), {"output_dir": "/tmp/" + "x" * 300}),
    ("output-zero-byte", ("output_dir",), {"output_dir": "/tmp/a\0b"}),
    ("lora-dropout", ("dropout",), {}),
):  # fmt: skip
    if name == "lora-dropout":
        continue
    command_case(name, *names, **given)
for flag, values in {
    "lora_r": ("0", "-1", "99999999999999999999999"), "lora_alpha": ("-1", "x"), "lora_dropout": ("2", "nan", "-1"),
    "lora_target_modules": ("nowhere",), "text_column": ("nope",),
}.items():  # fmt: skip
    for value in values:
        command_case(f"{flag}-{value}", flag, task="causal_lm", **{flag: value})
for flag, value in (("augmentation", "magic"), ("image_processor_name", "no/such/one"), ("train_dir", "nowhere"),
                    ("label_column", "nope"), ("image_column", "nope"), ("max_train_samples", "0")):  # fmt: skip
    command_case(f"images-{flag}-{value}", flag, value, task="image_classification", **{flag: value})


def overwrite(folder: Path, models: dict[str, str]) -> list[str]:
    (folder / "own").mkdir()
    (folder / "own" / "README.md").write_text("mine")
    (folder / "own" / "config.json").write_text("{}")
    (folder / "good.csv").write_text(rows())
    given = {"train_file": folder / "good.csv", "output_dir": folder / "own"}
    return train("text_classification", folder, models, given)


CATALOG.add("commands", "output-with-a-readme", overwrite, ("output_dir",))


def yaml_case(name: str, text: str | bytes, *names: str, expected: str = REFUSED) -> None:
    """A YAML file of one's own, behind which the data stands."""

    def make(folder: Path, models: dict[str, str]) -> list[str]:
        path = folder / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        (folder / "good.csv").write_text(rows())
        words = train("text_classification", folder, models, {"train_file": folder / "good.csv"})
        return [*words[:2], str(path), *words[2:]]

    CATALOG.add("commands", f"yaml-{name}", make, ("mine.yaml", *names), expected)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(8)
)
for name, text, names in (
    ("empty", "", ()), ("list", "[1, 2]", ()), ("scalar", "hello", ()), ("nothing-to-do", "seed: 1\n", ("do_train",)),
    ("latin-1", "# caf\xe9\nseed: 1\n".encode("latin-1"), ()), ("utf-16", "seed: 1\n".encode("utf-16"), ()),
    ("binary", bytes(range(256)), ()), ("deep", "a: " + "[" * 5000, ()), ("bomb", BOMB, ()), ("itself", "a: &a [*a]\n", ()),
    ("flag-in-a-list", "do_train: true\nlabel_names: ['--learning_rate=5', b]\n", ("label_names",)),
    ("list-for-a-number", "do_train: true\nlearning_rate: [1, 2]\n", ("learning_rate",)),
    ("object-for-a-number", "do_train: true\nlearning_rate: {a: 1}\n", ("learning_rate",)),
    ("empty-list", "do_train: true\nlearning_rate: []\n", ("learning_rate",)),
    ("nested-list", "do_train: true\nlabel_names: [[a], [b]]\n", ("label_names",)),
    ("number-as-key", "do_train: true\n1: 2\n", ("1",)), ("list-as-key", "? [a, b]\n: 2\n", ()),
    ("key-with-dashes", "--do_train: true\n--learning_rate: 1\n", ()), ("unknown-key", "do_train: true\nfoo: 1\n", ("foo",)),
    ("key-with-spaces", "do_train: true\nfoo bar: 1\n", ("foo bar",)), ("date", "do_train: true\nlearning_rate: 2020-01-01\n",
    ("learning_rate",)), ("python", "a: !!python/object/apply:os.system ['true']\n", ()), ("tag", "a: !foo 1\n", ()),
    ("twice", "do_train: true\nlearning_rate: 1.0\nlearning_rate: 2.0\n", ("learning_rate",)),
    ("not-a-number", "do_train: true\nlearning_rate: .nan\n", ("learning_rate",)),
    ("infinite", "do_train: true\nlearning_rate: .inf\n", ("learning_rate",)),
    ("defaults-of-nothing", "defaults:\n", ("defaults",)), ("defaults-of-a-list", "defaults: [a]\n", ("defaults",)),
    ("wrong-type", "do_train: 3\n", ("do_train",)), ("two-documents", "a: 1\n---\nb: 2\n", ()),
):  # fmt: skip
    yaml_case(name, text, *names)
yaml_case("good", "defaults: text_classification\nseed: 3\n", expected=ACCEPTED)


def plain(name: str, words: list[str], *names: str, expected: str = REFUSED) -> None:
    """A command line with {folder}, {text}, {classifier}, {image} and {data}."""

    def make(folder: Path, models: dict[str, str]) -> list[str]:
        data = folder / "good.csv"
        data.write_text(rows(label=lambda k: ("neg", "pos")[k % 2]))
        return [word.format(folder=folder, data=data, **models) for word in words]

    CATALOG.add("commands", name, make, names, expected)


HUGE = "99999999999999999999999"
for flag in ("num_labels", "length"):
    for value in (HUGE, "0", "-1", "x", "1e9", "nan"):
        plain(
            f"layers-{flag}-{value}",
            ["layers", "{text}", "--task", "sequence-classification", f"--{flag}={value}"],
            flag,
        )
plain("layers-length-huge", ["layers", "{classifier}", "--length", "2000000000"], expected=ACCEPTED)
plain("layers-task", ["layers", "{text}", "--task", "x" * 5000], "--task")
plain("layers-nowhere", ["layers", "{folder}/x"], "'{folder}".format(folder=""), "/x")
plain("layers-of-nothing", ["layers", ""], "''")
plain("layers-zero-byte", ["layers", "a\0b"], "MODEL", "model", "a\\x00b")
plain("layers-long", ["layers", "x/" * 3000], "x/x")
plain("layers-no-argument", ["layers"], "MODEL")
plain("no-command", [], expected=ACCEPTED)
plain("unknown-command", ["fly"], "fly")
plain("unknown-command-long", ["x" * 5000], "COMMAND", "xxx")
plain("unknown-task", ["train", "speech"], "speech")
plain("no-task", ["train"], "TASK")
plain("unknown-option", ["measure", "{classifier}", "--dataset", "{data}", "--fly"], "--fly")
for flag in ("items", "probes", "batch-size", "max-length", "seed"):
    for value in (
        "-1",
        "x",
        "nan",
        HUGE if flag != "items" else "1.5",
        *(("0",) if flag not in ("seed", "items") else ()),
    ):
        plain(f"measure-{flag}-{value}", ["measure", "{classifier}", "--dataset", "{data}", f"--{flag}={value}"], flag,
              flag.replace("-", "_"))  # fmt: skip
for name, more, names in (
    ("layers", ["--layers", "nowhere"], ("layer",)), ("layers-empty", ["--layers="], ("layer",)),
    ("layers-long", ["--layers", "x" * 5000], ("layer",)), ("layers-embedding", ["--layers",
     "bert.embeddings.word_embeddings"], ("layer",)), ("layers-norm", ["--layers", "bert.embeddings.LayerNorm"], ("layer",)),
    ("measures", ["--measures", "beauty"], ("measures",)), ("measures-empty", ["--measures="], ("measures",)),
    ("measures-long", ["--measures", "x" * 5000], ("measures",)), ("config", ["--dataset_config", "x"], ("--dataset_config",)),
    ("split", ["--split", "nowhere"], ("split",)), ("split-long", ["--split", "x" * 5000], ("split",)),
    ("text-column", ["--text_column", "nope"], ("--text_column", "nope")), ("label-column", ["--label_column", "nope"], ("nope",)),
    ("image-column", ["--image_column", "nope"], ("--image_column",)), ("device", ["--device", "magic"], ("--device",)),
    ("device-long", ["--device", "x" * 5000], ("--device",)), ("report-in-proc", ["--report", "/proc/x.html"], ("/proc/x.html",)),
    ("json-in-proc", ["--json", "/proc/x.json"], ("/proc/x.json",)), ("json-is-a-folder", ["--json", "{folder}"], ("--json", "folder")),
    ("report-below-a-file", ["--report", "{data}/x.html"], ("x.html",)), ("json-long", ["--json", "/tmp/" + "x" * 300], ("xxx",)),
    ("json-and-report", ["--json", "{folder}/a", "--report", "{folder}/a"], ("--report",)),
    ("json-is-the-data", ["--json", "{data}"], ("--json",)),
):  # fmt: skip
    plain(f"measure-{name}", ["measure", "{classifier}", "--dataset", "{data}", "--items", "8", *more], *names)
plain(
    "measure-config-of-a-folder",
    ["measure", "{classifier}", "--dataset", "{folder}", "--dataset_config", "x"],
    "--dataset_config",
)
plain("measure-no-data", ["measure", "{classifier}", "--dataset", "{folder}/x"], "x'")
plain("measure-data-long", ["measure", "{classifier}", "--dataset", "x" * 5000], "data")
plain("measure-model-without-head", ["measure", "{text}", "--dataset", "{data}"], "MaskedLM")
plain("measure-no-model", ["measure", "{folder}", "--dataset", "{data}"], "config.json")


def all_cases() -> list[Case]:
    return CATALOG.cases
