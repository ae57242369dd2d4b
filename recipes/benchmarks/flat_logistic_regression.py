"""What FlatLogisticRegression costs beside scikit-learn's LogisticRegression, in time and in memory.

    OMP_NUM_THREADS=2 python recipes/benchmarks/flat_logistic_regression.py   # writes docs/generated/classifier/cost.md

FlatLogisticRegression chooses delta by cross-validation, or has a fixed one. All fit the same synthetic features in
single precision with the same tolerance, in turns. scikit-learn's makes at most its default of 100 steps, so its time
is a lower bound where it needs more. Tuning is one fit for each of eight C.
`--million` fits 1,000,000 samples of 768 features, 3 GB, and measures the memory beyond them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hf_fam import FlatLogisticRegression

ROOT = Path(__file__).parents[2]
# Samples, features, classes, and rounds.
SIZES = ((1_000, 1_280, 10, 7), (50_000, 768, 100, 1))
MILLION = (1_000_000, 768, 10)
CS = tuple(10.0**k for k in range(-4, 4))
FLAT, FIXED = "FlatLogisticRegression", "FlatLogisticRegression, delta = 0.5"
PLAIN, TUNED = "LogisticRegression, C = 1", "LogisticRegression, eight C"
Seconds = tuple[float, float]


def features_and_labels(samples: int, width: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features with a spectrum as that of embeddings, of mean square 1, and labels a fifth of which are wrong."""
    random = np.random.default_rng(0)
    deviations = np.arange(1, width + 1) ** -0.5
    deviations *= np.sqrt(width / (deviations**2).sum())
    labels = random.integers(classes, size=samples)
    means = (0.5 * deviations * random.normal(size=(classes, width))).astype(np.float32)
    features = np.empty((samples, width), dtype=np.float32)
    for first in range(0, samples, 10_000):
        rows = slice(first, min(first + 10_000, samples))
        noise = random.standard_normal((rows.stop - first, width), dtype=np.float32)
        features[rows] = means[labels[rows]] + noise * deviations.astype(np.float32)
    wrong = random.random(samples) < 0.2
    labels[wrong] = random.integers(classes, size=int(wrong.sum()))
    return features, labels


def timed(program: Callable[[], object]) -> Seconds:
    """Seconds on the clock, and seconds of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    program()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(samples: int, width: int, classes: int, rounds: int) -> dict[str, Seconds]:
    """Median seconds of each way to fit."""
    X, y = features_and_labels(samples, width, classes)

    def tune() -> None:
        for C in CS:
            LogisticRegression(C=C).fit(X, y)

    programs: dict[str, Callable[[], object]] = {
        FLAT: lambda: FlatLogisticRegression().fit(X, y),
        FIXED: lambda: FlatLogisticRegression(delta=0.5).fit(X, y),
        PLAIN: lambda: LogisticRegression().fit(X, y),
        TUNED: tune,
    }
    FlatLogisticRegression(delta=0.5, max_iter=2).fit(X, y)  # what is done once in a process does not count
    LogisticRegression(max_iter=2).fit(X, y)
    found: dict[str, list[Seconds]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(timed(program))
            print(f"{samples:,} × {width:,} × {classes}, {name}: {found[name][-1][0]:.2f} s", flush=True)
    medians = {}
    for name, seconds in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
        medians[name] = (wall, cpu)
    return medians


def million() -> str:
    """Time of one large fit, and the memory that it needs beside the features."""
    samples, width, classes = MILLION
    X, y = features_and_labels(samples, width, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = FlatLogisticRegression()
    wall, _ = timed(lambda: model.fit(X, y))
    beyond = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return (
        f"{samples:,} samples of {width} features in {classes} classes, {X.nbytes / 2**30:.1f} GiB: {wall:.0f} s for "
        f"{model.n_iter_[0]} steps, {beyond:.0f} MiB beside the features.\n"
    )


def table(found: dict[tuple[int, int, int], dict[str, Seconds]]) -> str:
    lines = [
        f"| samples × features × classes | {FLAT} | {FIXED} | {PLAIN} | {TUNED} |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for size, seconds in found.items():
        pairs = [seconds[name] for name in (FLAT, FIXED, PLAIN, TUNED)]
        texts = [f"{wall:.2f} s ({cpu:.2f})" for wall, cpu in pairs]
        lines.append("| " + " | ".join([" × ".join(f"{n:,}" for n in size), *texts]) + " |")
    lines.append("")
    for size, seconds in found.items():
        name = " × ".join(f"{n:,}" for n in size)
        lines.append(f"- {name}: {FIXED}, takes {_ratio(seconds[FIXED], seconds[PLAIN])} times as long as C = 1.")
        lines.append(f"- {name}: {FLAT} takes {_ratio(seconds[FLAT], seconds[TUNED])} times as long as eight C.")
    lines.append(
        f"\nIn brackets: seconds of all processors. {torch.get_num_threads()} threads, float32, tolerance 10⁻⁴."
    )
    return "\n".join(lines) + "\n"


def _ratio(ours: Seconds, theirs: Seconds) -> str:
    return f"{ours[0] / theirs[0]:.2f} ({ours[1] / theirs[1]:.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "generated" / "classifier")
    parser.add_argument("--million", action="store_true", help="fit the million samples only")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    warnings.simplefilter(
        "ignore", ConvergenceWarning
    )  # with little penalty, scikit-learn's is not there in 1,000 steps
    options.output.mkdir(parents=True, exist_ok=True)
    if options.million:
        (options.output / "million.md").write_text(million(), encoding="utf-8")
        print((options.output / "million.md").read_text(encoding="utf-8"))
        return
    sizes = ((60, 8, 3, 1),) if options.smoke else SIZES
    found = {}
    for size in sizes:
        found[size[:3]] = measure(*size)
        text = table(found)
        print(f"load {os.getloadavg()[0]:.1f}\n\n{text}")
        (options.output / "cost.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
