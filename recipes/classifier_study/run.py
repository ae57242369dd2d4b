"""Run the study: the choice of the defaults, their confirmation, synthetic data, and starts of the solver.

    python recipes/classifier_study/run.py --cache out/classifier_study/features

Adds to the files in results/ and goes on where it was interrupted. README.md has the rules.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from methods import DELTAS, SMOOTHINGS, dimensions, flat_path, rivals, tuned, tuned_logistic, untuned, whitened
from report import chosen_pairs
from starts import compare_starts
from tasks import CHOICE, CONFIRMATION, EXTENT, PROMISE, SMALL_EXTENT, Sample, draw, draw_synthetic

RESULTS = Path(__file__).parent / "results"
SEEDS = 10
FIELDS = ("task", "seed", "method", "delta", "smoothing", "accuracy", "nll")
# For comparison: the pair of exploratory runs, and what rule 1 takes if d is tr S / λ_max.
EARLIER = (0.5, 0.1)
STABLE_RANK = (0.35, 0.1)
# The first default of delta and smoothing.
FIXED = (0.7, 0.03)
# Seeds of the promise, which no earlier part has used.
FRESH = range(1000, 1020)

Row = dict[str, Any]


def choose(sample: Sample) -> Iterator[Row]:
    """All settings, logistic regression, whitened features, and the measures of the dimension."""
    measures = dimensions(sample.train[0])
    yield from ({"method": f"dimension: {name}", "accuracy": value, "nll": 0} for name, value in measures.items())
    yield from logistic(sample, max_iter=2000)
    for smoothing in SMOOTHINGS:
        yield from flat(sample, "flat", DELTAS, smoothing, measures["participation"])
    other, rank = whitened(sample)
    yield from flat(other, "whitened", DELTAS, 0.1, rank)


def confirm(sample: Sample) -> Iterator[Row]:
    """The settings that the rule chooses, and logistic regression."""
    measures = dimensions(sample.train[0])
    sample = Sample(*((part[0].astype(np.float32), part[1]) for part in (sample.train, sample.validation, sample.test)))
    yield from logistic(sample, max_iter=500)
    for delta, smoothing in (*chosen_pairs(pandas.read_csv(RESULTS / "choice.csv")), EARLIER):
        yield from flat(sample, "flat", (delta,), smoothing, measures["participation"])
    yield from flat(sample, "stable rank", STABLE_RANK[:1], STABLE_RANK[1], measures["stable rank"])


def promise(sample: Sample) -> Iterator[Row]:
    """FlatLogisticRegression without tuning, its earlier default, and rivals that are tuned on validation samples."""
    dimension = dimensions(sample.train[0])["participation"]
    sample = Sample(*((part[0].astype(np.float32), part[1]) for part in (sample.train, sample.validation, sample.test)))
    found, delta = untuned(sample)
    yield {"method": "auto", "delta": delta, "accuracy": found.accuracy, "nll": found.nll}
    yield from flat(sample, "fixed", FIXED[:1], FIXED[1], dimension)
    yield from logistic(sample, max_iter=300)
    for method, candidates in rivals(sample).items():
        found = tuned(sample, candidates)
        yield {"method": method, "accuracy": found.accuracy, "nll": found.nll}


def logistic(sample: Sample, max_iter: int) -> Iterator[Row]:
    for method, found in zip(("tuned C", "C = 1"), tuned_logistic(sample, max_iter), strict=True):
        yield {"method": method, "accuracy": found.accuracy, "nll": found.nll}


def flat(sample: Sample, method: str, deltas: tuple[float, ...], smoothing: float, dimension: float) -> Iterator[Row]:
    strong_first = sorted(deltas, reverse=True)
    found = flat_path(sample, [delta**2 / (2 * dimension) for delta in strong_first], smoothing)
    for delta, scores in zip(strong_first, found, strict=True):
        yield {
            "method": method,
            "delta": delta,
            "smoothing": smoothing,
            "accuracy": scores.accuracy,
            "nll": scores.nll,
        }


def run(
    name: str,
    tasks: Any,
    sample_of: Callable[[Any, int], Sample],
    method: Any,
    deadline: float,
    seeds: range = range(SEEDS),
) -> bool:
    """Run all tasks and seeds that are missing; return whether all are done."""
    path = RESULTS / f"{name}.csv"
    done = set()
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            done = {(row["task"], int(row["seed"])) for row in csv.DictReader(file)}
    for seed in seeds:
        for task in tasks:
            if (task.name, seed) in done:
                continue
            if time.monotonic() > deadline:
                return False
            rows = [{"task": task.name, "seed": seed, **row} for row in method(sample_of(task, seed))]
            for row in rows:
                row["accuracy"], row["nll"] = f"{row['accuracy']:.3f}", f"{row['nll']:.4f}"
            new = not path.exists()
            with path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerows(rows)
    print(f"{name}: complete", flush=True)
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the features")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing new after so many minutes")
    parser.add_argument(
        "--only",
        choices=[
            "choice",
            "confirmation",
            "promise",
            "rivals",
            "rivals_in_time",
            "cross_validated",
            "extent",
            "starts",
        ],
        help="this part only",
    )
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    RESULTS.mkdir(exist_ok=True)
    import slow_rivals as others

    parts: dict[str, Callable[[], bool]] = {
        "choice": lambda: run("choice", CHOICE, lambda t, s: draw(t, options.cache, s), choose, deadline),
        "confirmation": lambda: run(
            "confirmation", CONFIRMATION, lambda t, s: draw(t, options.cache, s), confirm, deadline
        ),
        "promise": lambda: run("promise", PROMISE, lambda t, s: draw(t, options.cache, s), promise, deadline, FRESH),
        "rivals": lambda: run(
            "rivals", others.TASKS, lambda t, s: draw(t, options.cache, s), others.compare, deadline, FRESH[:3]
        ),
        "rivals_in_time": lambda: run(
            "rivals_in_time",
            others.TASKS,
            lambda t, s: draw(t, options.cache, s),
            others.compare_in_time,
            deadline,
            FRESH[:3],
        ),
        "cross_validated": lambda: run(
            "cross_validated",
            others.TASKS,
            lambda t, s: draw(t, options.cache, s),
            others.cross_validate,
            deadline,
            FRESH,
        ),
        "extent": lambda: (
            run("extent", SMALL_EXTENT, draw_synthetic, promise, deadline, range(3))
            and run("extent", EXTENT, draw_synthetic, promise, deadline, range(3))
        ),
        "starts": lambda: compare_starts(RESULTS / "starts.csv", options.cache, deadline),
    }
    for name, part in parts.items():
        if options.only in (None, name) and not part():
            print(f"{name}: not complete, run the command again")
            return


if __name__ == "__main__":
    main()
