"""Do all starts of the solver end at one loss? The objective is not convex."""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from tasks import CHOICE, EXTENT, Sample, draw, draw_synthetic

from hf_fam.classifier.effective_dimension import effective_dimension
from hf_fam.classifier.objective import Objective
from hf_fam.classifier.solver import solve
from hf_fam.classifier.spectrum import Spectrum
from hf_fam.classifier.training_set import TrainingSet

CASES = 100
# Strong ones, too, where the term outweighs the loss.
DELTAS = (0.3, 0.5, 1.0, 2.0)
FIELDS = ("case", "task", "delta", "from_zero", "from_plain")
# Those that take less than a second.
REAL = [task for task in CHOICE if task.data != "cifar10"]
SMALL = [task for task in EXTENT if task.classes * task.shots * task.width < 1e5]


def samples(cache: Path) -> Iterator[tuple[str, Sample]]:
    """Yield 100 samples, real and synthetic ones in turn."""
    for case in range(CASES):
        if case % 2:
            task = REAL[case // 2 % len(REAL)]
            yield task.name, draw(task, cache, seed=1000 + case)
        else:
            other = SMALL[case // 2 % len(SMALL)]
            yield other.name, draw_synthetic(other, seed=1000 + case)


def compare_starts(path: Path, cache: Path, deadline: float) -> bool:
    """Write the loss at the end of each start for every case; return whether all are there."""
    done = len(path.read_text(encoding="utf-8").splitlines()) - 1 if path.exists() else 0
    for case, (name, sample) in enumerate(samples(cache)):
        if case < done:
            continue
        if time.monotonic() > deadline:
            return False
        delta = DELTAS[case * len(DELTAS) // CASES]
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(FIELDS)
            writer.writerow([case, name, delta, *(f"{loss:.10f}" for loss in losses(sample, delta))])
    print("starts: complete", flush=True)
    return True


def losses(sample: Sample, delta: float) -> list[float]:
    """Return the loss that L-BFGS ends at, from zero and from the end of plain training."""
    X, y = (torch.from_numpy(part) for part in sample.train)
    classes = int(y.max()) + 1
    weights = torch.full((len(y),), 1 / len(y), dtype=X.dtype)
    data = TrainingSet.of(X, y, weights, classes, center=True)
    objective = Objective(data, delta**2 / (2 * effective_dimension(X, weights)), 0.1)
    zero, spectrum = np.zeros(classes * (X.shape[1] + 1)), Spectrum.of(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # plain training has no optimum on separable data
        plain = solve(Objective(data, 0.0, 0.1), zero, spectrum, tol=1e-5, max_iter=500).parameters
    return [solve(objective, start, spectrum, tol=1e-6, max_iter=20000).value for start in (zero, plain)]
