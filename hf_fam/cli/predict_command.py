"""``hf-fam predict``: the predictions of a saved model for a file, as csv."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..inputs.packages import require_packages
from ..inputs.paths import require_writable_file
from ..inputs.text import printable, quote
from .argument_types import whole
from .device import choose_device
from .quiet import quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without heavy imports."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with a saved model, or a model on the Hub")
    add(
        "file",
        metavar="FILE",
        help="csv, tsv, json, jsonl, parquet, or txt with one text a line; for images a folder, an image, or txt with "
        "one path a line",
    )
    add("--output", type=Path, metavar="FILE.csv", help="where to write (default: standard output)")
    add("--split", help="split of a folder or of a data set on the Hub (default: the only one, test or train)")
    add("--text_column", metavar="NAME", help="column of the text, or two separated by a comma (default: guessed)")
    add("--image_column", metavar="NAME", help="column of the image (default: guessed)")
    add("--encoding", metavar="NAME", help="encoding of text files, such as cp1252 (default: utf-8)")
    add("--drop_missing", action="store_true", help="leave out rows with an empty place, instead of refusing them")
    add("--batch_size", type=whole(1), default=32, metavar="N", help="inputs in a batch (default: 32)")
    add(
        "--max_length",
        type=whole(1),
        metavar="N",
        help="cut texts after N tokens (default: as in training, 512 at most)",
    )
    add("--device", help="cpu, cuda, mps ... (default: a GPU if there is one)")
    add("--trust_remote_code", action="store_true", help="run code that is saved with the model")


def run(options: argparse.Namespace) -> None:
    """Predict, and write a row for each input.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: the model or the file cannot be used; the message is a sentence.
    """
    if options.output is not None:
        require_writable_file("--output", str(options.output))
        if os.path.abspath(options.output) == os.path.abspath(options.file):
            raise ValueError(f"--output {quote(str(options.output))} is the input, which would be overwritten.")
    require_packages("this command", "measure", "datasets")
    from ..measure.predictions import Options, Predictor

    quiet_libraries()
    predictor = Predictor(
        options.model,
        options.file,
        Options(
            split=options.split,
            text_column=options.text_column,
            image_column=options.image_column,
            encoding=options.encoding,
            drop_missing=options.drop_missing,
            batch_size=options.batch_size,
            max_length=options.max_length,
            device=choose_device(options.device),
            trust_remote_code=options.trust_remote_code,
        ),
    )
    is_replaced = options.output is not None and options.output.exists()
    with _opened(options.output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(predictor.header)
        writer.writerows(predictor.rows())
    where = "" if options.output is None else f" written to {printable(str(options.output))}"
    rows = f"{predictor.predicted:,} {'row' if predictor.predicted == 1 else 'rows'}"
    column = ", ".join(quote(name) for name in predictor.columns)
    replaced = ", which replaces the file that was there" if is_replaced else ""
    print(f"Predictions of {rows}, column {column}{where}{replaced}.", file=sys.stderr)
    if predictor.right is not None:
        print(
            f"Accuracy on the labels of the file: {100 * predictor.right / predictor.predicted:.1f} %.", file=sys.stderr
        )
    if predictor.cut:
        texts = "1 text was" if predictor.cut == 1 else f"{predictor.cut:,} texts were"
        print(f"Note: {texts} cut after {predictor.length} tokens; --max_length changes it.", file=sys.stderr)


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    """Open the file to write; it has its name when it is whole."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()  # before it is said how many there are
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
