"""Write questions of Banking77 as texts for a language model.

    python recipes/causal_lm/banking77.py PATH out/banking77_texts

PATH is the folder of Banking77 (Casanueva et al. 2020, CC BY 4.0), with ``train.parquet`` and ``test.parquet``. The
three files have 600 texts to train on, 400 for validation and 1,000 for test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of Banking77")
    parser.add_argument("output", type=Path, help="folder for train.jsonl, validation.jsonl and test.jsonl")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    training = pandas.read_parquet(options.data / "train.parquet").sample(1000, random_state=0)
    test = pandas.read_parquet(options.data / "test.parquet").sample(1000, random_state=0)
    for name, rows in (("train", training[:600]), ("validation", training[600:]), ("test", test)):
        rows[["text"]].to_json(options.output / f"{name}.jsonl", orient="records", lines=True, force_ascii=False)


if __name__ == "__main__":
    main()
