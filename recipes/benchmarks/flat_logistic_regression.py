"""What FlatLogisticRegression costs beside scikit-learn's LogisticRegression, in time and in memory.

    OMP_NUM_THREADS=2 python recipes/benchmarks/flat_logistic_regression.py   # writes docs/generated/classifier/cost.md

All fit the same synthetic features in single precision with the same tolerance. A fit with a fixed delta and one of
C = 1 take turns, as many steps as each needs. After that, ``delta="auto"`` and tuning, which is one fit for each of
eight C. These stop at scikit-learn's default of 100 steps, so that their time is a lower bound; the table says how many
did. At the end 1,000,000 samples of 768 features, 3 GB, and the memory beside them; ``--million`` prints that alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hf_fam import FlatLogisticRegression

ROOT = Path(__file__).parents[2]
CS = tuple(10.0**k for k in range(-4, 4))
DELTA = 0.5


@dataclass(frozen=True)
class Size:
    """A training set, and how often it is fitted.

    Attributes:
        samples, width, classes: its size.
        pairs: of a fit with a fixed delta and one of C = 1.
        tunings: of a fit with ``delta="auto"`` and eight C.
    """

    samples: int
    width: int
    classes: int
    pairs: int = 1
    tunings: int = 1

    def __str__(self) -> str:
        return f"{self.samples:,} × {self.width:,} × {self.classes:,}"


SIZES = (Size(1_000, 1_280, 10, pairs=15, tunings=5), Size(50_000, 768, 100, pairs=3))
MILLION = Size(1_000_000, 768, 10)
TINY = Size(60, 8, 3, pairs=2)


@dataclass
class Found:
    """Seconds on the clock and of all processors, of each fit of a kind."""

    flat: list[tuple[float, float]] = field(default_factory=list)
    plain: list[tuple[float, float]] = field(default_factory=list)
    auto: list[tuple[float, float]] = field(default_factory=list)
    tuning: list[tuple[float, float]] = field(default_factory=list)
    cut: int = 0


def features_and_labels(size: Size) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features with a spectrum as that of embeddings, of mean square 1, and labels a fifth of which are wrong."""
    random = np.random.default_rng(0)
    deviations = np.arange(1, size.width + 1) ** -0.5
    deviations *= np.sqrt(size.width / (deviations**2).sum())
    labels = random.integers(size.classes, size=size.samples)
    means = (0.5 * deviations * random.normal(size=(size.classes, size.width))).astype(np.float32)
    features = np.empty((size.samples, size.width), dtype=np.float32)
    for first in range(0, size.samples, 10_000):
        rows = slice(first, min(first + 10_000, size.samples))
        noise = random.standard_normal((rows.stop - first, size.width), dtype=np.float32)
        features[rows] = means[labels[rows]] + noise * deviations.astype(np.float32)
    wrong = random.random(size.samples) < 0.2
    labels[wrong] = random.integers(size.classes, size=int(wrong.sum()))
    return features, labels


def timed(name: str, program: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and seconds of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    program()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name}: {seconds[0]:.2f} s ({seconds[1]:.2f})", file=sys.stderr, flush=True)
    return seconds


def measure(size: Size) -> Found:
    """Time all fits of a size."""
    X, y = features_and_labels(size)
    FlatLogisticRegression(delta=DELTA, max_iter=2).fit(X, y)  # what is done once in a process does not count
    LogisticRegression(max_iter=2).fit(X, y)
    found = Found()
    for _ in range(size.pairs):
        found.flat.append(timed(f"{size}, delta", lambda: FlatLogisticRegression(delta=DELTA).fit(X, y)))
        found.plain.append(timed(f"{size}, C = 1", lambda: LogisticRegression(max_iter=10_000).fit(X, y)))
    for _ in range(size.tunings):
        found.auto.append(timed(f"{size}, auto", lambda: FlatLogisticRegression().fit(X, y)))
        models = [LogisticRegression(C=C) for C in CS]
        each = [timed(f"{size}, C = {model.C:g}", lambda model=model: model.fit(X, y)) for model in models]
        found.tuning.append((sum(wall for wall, _ in each), sum(cpu for _, cpu in each)))
        found.cut = sum(int(model.n_iter_[0] >= model.max_iter) for model in models)
    return found


def ratio(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> str:
    """Median and range of the ratios of two fits in a row, on the clock and of all processors."""
    texts = []
    for k in range(2):
        ratios = [a[k] / b[k] for a, b in zip(ours, theirs, strict=True)]
        spread = f", {min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
        texts.append(f"{statistics.median(ratios):.2f}{spread}")
    return f"{texts[0]} ({texts[1]})"


def median(fits: list[tuple[float, float]]) -> str:
    wall, cpu = (statistics.median(column) for column in zip(*fits, strict=True))
    return f"{wall:.2f} s ({cpu:.2f})"


def tables(found: dict[Size, Found]) -> Iterator[str]:
    """Yield the lines of both tables."""
    first = "samples × features × classes"
    yield f"| {first} | δ = {DELTA:g} | LogisticRegression, C = 1 | ratio of two fits in a row |"
    yield "| --- | ---: | ---: | ---: |"
    for size, fits in found.items():
        yield f"| {size} | {median(fits.flat)} | {median(fits.plain)} | {ratio(fits.flat, fits.plain)} |"
    yield ""
    yield f"| {first} | δ by cross-validation | LogisticRegression, eight C | ratio | fits of C that were cut off |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for size, fits in found.items():
        numbers = f"{median(fits.auto)} | {median(fits.tuning)} | {ratio(fits.auto, fits.tuning)}"
        yield f"| {size} | {numbers} | {fits.cut} of {len(CS)} |"
    repeats = "; ".join(f"{size}: {size.pairs} and {size.tunings}" for size in found)
    yield ""
    yield "Medians and ranges; in brackets seconds of all processors."
    yield f"{threads()}, float32, tolerance 10⁻⁴. Repeats: {repeats}."
    yield "scikit-learn cuts a fit off after 100 steps by default, so the time of eight C is a lower bound."


def million(size: Size) -> Iterator[str]:
    """Yield the lines of the table of one large training set: time, and memory beside the features."""
    X, y = features_and_labels(size)
    yield f"| {size}, {X.nbytes / 2**30:.1f} GiB | time | steps of the last fit | memory beside the features |"
    yield "| --- | ---: | ---: | ---: |"
    for name, model in {
        f"δ = {DELTA:g}": FlatLogisticRegression(delta=DELTA),
        "δ by cross-validation": FlatLogisticRegression(),
    }.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = timed(f"{size}, {name}", lambda model=model: model.fit(X, y))
        beyond = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        yield f"| {name} | {wall:.0f} s ({cpu:.0f}) | {model.n_iter_[0]} | {beyond:.0f} MiB |"
    yield ""
    yield f"In brackets: seconds of all processors. {threads()}, float32."


def threads() -> str:
    count = torch.get_num_threads()
    return "One thread" if count == 1 else f"{count} threads"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "generated" / "classifier")
    parser.add_argument("--million", action="store_true", help="only print the table of the million samples")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)  # of the C that are cut off
    if options.million:
        print("\n".join(million(TINY if options.smoke else MILLION)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    path, found = options.output / "cost.md", {}
    for size in (TINY,) if options.smoke else SIZES:
        found[size] = measure(size)
        path.write_text("\n".join(tables(found)) + "\n", encoding="utf-8")
    command = [sys.executable, __file__, "--million", *(["--smoke"] if options.smoke else [])]
    # In a process of its own, whose memory has held nothing else.
    large = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    path.write_text("\n".join(tables(found)) + "\n\n" + large, encoding="utf-8")
    print(f"load {os.getloadavg()[0]:.1f}\n\n{path.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()
