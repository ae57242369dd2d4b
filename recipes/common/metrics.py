"""Metrics, each from its script in recipes/metrics: the same with and without the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import EvalPrediction

METRICS = Path(__file__).parents[1] / "metrics"
IGNORED = -100


def compute(name: str, predictions: ArrayLike, references: ArrayLike, **options: Any) -> float:
    """One metric by the name of its script."""
    # In memory: several processes compute the same at the same time.
    metric = evaluate.load(str(METRICS / name / f"{name}.py"), keep_in_memory=True)
    return float(metric.compute(predictions=predictions, references=references, **options)[name])


def classification(found: EvalPrediction) -> dict[str, float]:
    """Accuracy, F1, Matthews correlation, NLL and calibration error; rows without a label do not count."""
    logits, labels = flat(found)
    classes = logits.argmax(-1)
    return {
        "accuracy": compute("accuracy", classes, labels),
        "f1": compute("f1", classes, labels, average="binary" if logits.shape[-1] == 2 else "macro"),
        "matthews_correlation": compute("matthews_correlation", classes, labels),
        **likelihood(logits, labels),
    }


def likelihood(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """NLL in nats and the expected calibration error."""
    names = {"nll": "negative_log_likelihood", "ece": "expected_calibration_error"}
    return {short: compute(name, logits, labels) for short, name in names.items()}


def regression(found: EvalPrediction) -> dict[str, float]:
    """Correlations, of two items and more, and the mean squared error; a number has no probability, so no NLL."""
    values, truth = first(found.predictions).reshape(-1), np.asarray(found.label_ids).reshape(-1)
    correlations = ("pearson", "spearman") if len(values) > 1 else ()
    return {name: compute(name, values, truth) for name in (*correlations, "mean_squared_error")}


def flat(found: EvalPrediction) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Logits and labels of all rows with a label, shapes ``(rows, classes)`` and ``(rows,)``."""
    logits, labels = first(found.predictions), np.asarray(found.label_ids)
    logits, labels = logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.reshape(-1)
    known = labels >= 0
    return logits[known], labels[known]


def first(predictions: Any) -> NDArray[np.floating]:
    """The logits, where a model returns more."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
