"""The table of broken data and what `hf-fam train` answers.

python -m support.broken_data docs/generated/broken_data.md
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from support.bad_input import outcome
from support.bad_input.catalog import Case, all_cases
from support.bad_input.models import make_models

# Forty cases of the catalog, in the order of the table, with what a reader sees in the file.
KINDS = {
    "data-empty-csv": "an empty file",
    "data-header-only": "a csv file with a header alone",
    "data-garbage-csv": "bytes that are no text",
    "data-png-csv": "a picture with the ending csv",
    "data-unknown-ending": "an ending that is not known",
    "data-no-such-file": "a file that is not there",
    "data-file-is-a-folder": "a folder in place of a file",
    "data-utf-16": "a file in UTF-16",
    "data-utf-16-without-mark": "UTF-16 without its mark",
    "data-latin-1": "a file in Latin-1",
    "data-zero-byte": "a zero byte inside a text",
    "data-ragged-more": "a row with a value too many",
    "data-ragged-less": "a row with a value too few",
    "data-open-quote": "a quotation that never ends",
    "data-duplicate-columns": "two columns of one name",
    "data-no-text-column": "no column that looks like texts",
    "data-no-label-column": "no column that looks like labels",
    "data-one-class": "one class",
    "data-two-rows": "two rows",
    "data-each-its-own-class": "a class for each row",
    "data-empty-label": "an empty label",
    "data-blank-label": "a label of spaces",
    "data-nan-label-class": "NaN among labels",
    "data-word-as-number": "a word among numbers",
    "data-huge-label": "a number that float32 does not hold",
    "data-texts-that-are-numbers": "numbers in the place of texts",
    "data-json-cut-off": "JSON that is cut off",
    "data-json-broken-line": "a broken line of jsonl",
    "data-json-mixed-label": "labels of several types",
    "data-json-nested-text": "objects in the place of texts",
    "data-parquet-cut-off": "a parquet file that is cut off",
    "data-unknown-class-in-validation": "validation data with another class",
    "data-other-columns-in-validation": "validation data with other columns",
    "data-ner-fewer-tags": "fewer labels than words",
    "images-one-class": "images of one class",
    "images-empty-class": "a class without images",
    "images-picture-in-the-root": "an image in no class",
    "images-picture-cut-off": "an image that is cut off",
    "images-jpeg-html": "a web page with the ending jpg",
    "images-table-missing-path": "a path of an image that is not there",
}  # fmt: skip


def answer(case: Case, folder: Path, models: dict[str, str]) -> outcome.Outcome:
    """What the command says, without the name of the folder."""
    folder.mkdir()
    found = outcome.of_command(case.make(folder, models), case.names, folder)
    said = found.said.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "").replace(str(folder), "")
    return outcome.Outcome(found.kind, re.sub(r"^hf-fam train: ", "", said))


def table() -> str:
    """The table as Markdown."""
    cases = {str(case): case for case in all_cases()}
    lines = ["| data | answer |", "| --- | --- |"]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as root:
        os.chdir(root)
        try:
            models = make_models(Path("models"))
            for number, (name, shown) in enumerate(KINDS.items()):
                found = answer(cases[name], Path(f"d{number}"), models)
                if found.kind != "refused":
                    raise AssertionError(f"{name}: {found}")
                said = found.said.replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"| {shown} | {said} |")
        finally:
            os.chdir(before)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
