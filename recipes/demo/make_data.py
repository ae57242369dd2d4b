"""Make banking77_30_intents.csv, the data of `hf-fam demo`, from a copy of Banking77.

    python recipes/demo/make_data.py --banking77 FOLDER

FOLDER holds train.parquet and test.parquet (columns text and label, the rows in their official order) and
labels.json (the names of the 77 intents, at the index that is their label). The same input gives the same
file, byte for byte. See hf_fam/cli/demo/ATTRIBUTION.md for the source and its license.
"""

import argparse
import csv
import json
import random
from pathlib import Path

import pandas as pd

NUM_INTENTS = 30
TRAIN_EXAMPLES_PER_INTENT = 10
SEED = 0
OUTPUT = Path(__file__).parents[2] / "hf_fam" / "cli" / "demo" / "banking77_30_intents.csv"


def choose_rows(banking77: Path) -> list[tuple[str, str, str]]:
    """Return (split, text, label) of 30 intents: a few training examples each, and the whole test set."""
    names = json.loads((banking77 / "labels.json").read_text(encoding="utf-8"))
    train = pd.read_parquet(banking77 / "train.parquet")
    test = pd.read_parquet(banking77 / "test.parquet")
    intents = sorted(random.Random(SEED).sample(range(len(names)), NUM_INTENTS))

    rows = []
    for intent in intents:
        texts = train.loc[train["label"] == intent, "text"].tolist()
        random.Random(SEED).shuffle(texts)
        rows += [("train", text, names[intent]) for text in texts[:TRAIN_EXAMPLES_PER_INTENT]]
    for text, intent in zip(test["text"], test["label"], strict=True):
        if intent in intents:
            rows.append(("test", text, names[intent]))
    return rows


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banking77", type=Path, required=True, metavar="FOLDER", help="a copy of Banking77")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()

    rows = choose_rows(arguments.banking77)
    with arguments.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("split", "text", "label"))
        writer.writerows(rows)
    print(f"{arguments.output}: {len(rows)} rows")


if __name__ == "__main__":
    main()
