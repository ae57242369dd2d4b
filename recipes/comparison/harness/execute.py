"""One run, from the data to its record."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from . import tasks
from .methods import make
from .plan import Run
from .regimes import REGIMES, Outcome
from .scores import fit_temperature, scores


def execute(run: Run, data: Path, cache: Path) -> dict[str, Any]:
    """Train and evaluate; a training that diverged is a result too."""
    split = tasks.load(run.task, data, run.seed)
    method = make(run.method, run.configuration)
    record = run.describe()
    try:
        outcome = REGIMES[run.regime].run(split, method.adapt(run.settings), method, run.seed, cache)
    except FloatingPointError as error:
        return {**record, "diverged": str(error).splitlines()[0]}
    return {**record, **evaluate(outcome, split)}


def evaluate(outcome: Outcome, split: tasks.Split) -> dict[str, Any]:
    """Every number that is recorded; the temperature is fitted on the validation part."""
    if not all(np.isfinite(v).all() for v in outcome.logits.values()):
        return {"diverged": "logits are not finite"}
    temperature = fit_temperature(outcome.logits["validation"], split.validation.labels)
    parts = {
        part: scores(outcome.logits[part], getattr(split, part).labels, temperature)
        for part in ("train", "validation", "test")
    }
    return {
        "train_loss": parts["train"]["nll"],
        "train_accuracy": parts["train"]["accuracy"],
        "validation": rounded(parts["validation"]),
        "test": rounded(parts["test"]),
        "temperature": round(temperature, 4),
        "seconds": round(outcome.seconds, 3),
        "cpu_seconds": round(outcome.cpu_seconds, 3),
        "steps": outcome.steps,
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}


def circumstances() -> dict[str, Any]:
    """Return the revision of the code and the versions of its libraries."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", "../../../hf_fam", "..") else ""
    return {
        "revision": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
