"""Should ``fam_smoothing`` be 0.1 where more than the head is trained? Smoothed, not, and plain, nothing tuned.

    python recipes/smoothing/other_layers.py --data DATA --output docs/generated/smoothing

The rule of ``default.py``, written down before the first run, for each of three regimes: 0.1 becomes the default there
if, averaged over its tasks, it lowers the NLL (95 % interval over seeds below 0), loses at most a quarter point of
accuracy (lower limit), and loses half a point or more on no task. Otherwise the default stays 0.

- small network: one hidden layer of 256 features on frozen text features, κ of this layer.
- LoRA: rank 8 in MiniLM-L6, κ of the pooler.
- fine-tuning: all of EfficientNet-Lite0 on images, κ of the head.

One seed of each regime, in a larger size and no part of the results, had run before to see the time it takes.
Strengths and estimators are the defaults. Learning rates are those that the first protocol of ``recipes/comparison``
found for plain training.
Finished runs are kept in ``other_layers.csv``, and the same command carries on: the small network first, then seed by
seed. The table has the seeds that are complete.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
import transformers
from default import REGIMES, VARIANTS, Task, Trainers, report, score_of

SEEDS = range(600, 610)
KEYS = ["regime", "task", "seed", "method"]
HIDDEN = {"layer": "representation"}


@dataclass(frozen=True)
class Setup:
    """A regime with its settings and tasks.

    Attributes:
        regime: a key of ``REGIMES``.
        tasks: the data.
        settings: of the regime.
        fam: ``fam_`` arguments of the Trainer.
    """

    regime: str
    tasks: tuple[Task, ...]
    settings: dict[str, Any]
    fam: dict[str, str] = field(default_factory=dict)


SETUPS = {
    "small network": Setup(
        "head",
        (
            *(Task("banking77", shots=10, classes=20, test=800, noise=noise) for noise in (0.0, 0.2)),
            *(Task("sst2", shots=40, noise=noise) for noise in (0.0, 0.2)),
        ),
        {"hidden": "256", "tokens": "mean", "learning_rate": 1e-3, "epochs": 60},
        HIDDEN,
    ),
    "LoRA": Setup(
        "finetune",
        tuple(Task("banking77", shots=10, classes=10, test=300, noise=noise) for noise in (0.0, 0.2)),
        {"trainable": "lora 8", "learning_rate": 1e-3, "epochs": 6, "max_length": 32},
        HIDDEN,
    ),
    "fine-tuning": Setup(
        "finetune_images",
        tuple(Task("cifar10", train=300, test=500, noise=noise) for noise in (0.0, 0.2)),
        {"resolution": 48, "epochs": 4},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; without it, only the table is written")
    parser.add_argument("--output", type=Path, default=Path("out/smoothing"))
    parser.add_argument("--cache", type=Path, default=Path("out/comparison"), help="folder for frozen features")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing new after so many minutes")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "other_layers.csv"
    if options.data is not None:
        carry_out(file, options.data, options.cache, time.monotonic() + 60 * options.minutes)
    runs = pandas.read_csv(file)
    needed = runs["regime"].map({name: len(setup.tasks) * len(VARIANTS) for name, setup in SETUPS.items()})
    runs = runs[runs.groupby(["regime", "seed"])["method"].transform("size") == needed]
    (options.output / "other_layers.md").write_text(report(runs, "regime"), encoding="utf-8")


def all_runs() -> Iterator[tuple[str, Task, int, str]]:
    """Yield regime, task, seed and method of each run: the cheapest regime first, then seed by seed."""
    first, *others = SETUPS
    for names in ([first], others):
        for seed in SEEDS:
            for name in names:
                for task in SETUPS[name].tasks:
                    for method in VARIANTS:
                        yield name, task, seed, method


def carry_out(file: Path, data: Path, cache: Path, deadline: float) -> None:
    """Make the runs that are missing until a deadline, and append each when it ends."""
    transformers.logging.set_verbosity_error()
    done = {tuple(row) for row in pandas.read_csv(file)[KEYS].itertuples(index=False)} if file.exists() else set()
    for name, task, seed, method in all_runs():
        run = (name, task.key, seed, method)
        if run in done:
            continue
        if time.monotonic() > deadline:
            return
        setup, smoothing = SETUPS[name], VARIANTS[method]
        fam = {} if smoothing is None else {**setup.fam, "smoothing": smoothing}
        settings = REGIMES[setup.regime].Settings(**setup.settings, fam=fam)
        scores = score_of(Trainers(task, setup.regime, settings, data, cache), seed, smoothing)
        row = pandas.DataFrame([[*run, *scores]], columns=pandas.Index([*KEYS, "accuracy", "nll"]))
        row.to_csv(file, mode="a", header=not file.exists(), index=False)


if __name__ == "__main__":
    main()
