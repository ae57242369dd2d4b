"""Write questions of Banking77 as texts for a language model.

    python recipes/causal_lm/banking77.py PATH out/banking77_texts

PATH is the folder of Banking77 (Casanueva et al. 2020, CC BY 4.0), with ``train.parquet`` and ``test.parquet``. Texts
for validation are other training questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of Banking77")
    parser.add_argument("output", type=Path, help="folder for train.jsonl, validation.jsonl and test.jsonl")
    parser.add_argument("--sizes", type=int, nargs=3, default=[120, 60, 150], help="texts in each of the files")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    train, validation, test = options.sizes
    training = pandas.read_parquet(options.data / "train.parquet").sample(train + validation, random_state=0)
    held_out = pandas.read_parquet(options.data / "test.parquet").sample(test, random_state=0)
    for name, rows in (("train", training[:train]), ("validation", training[train:]), ("test", held_out)):
        rows[["text"]].to_json(options.output / f"{name}.jsonl", orient="records", lines=True, force_ascii=False)


if __name__ == "__main__":
    main()
