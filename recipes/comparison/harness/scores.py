"""What is recorded of a trained classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from hf_fam.measure.classification_metrics import accuracy, expected_calibration_error, negative_log_likelihood


def scores(logits: NDArray[np.floating], labels: NDArray[np.int64], temperature: float) -> dict[str, float]:
    """Quality of one split's logits; those after temperature scaling end in ``_scaled``."""
    scaled = logits / temperature
    return {
        "accuracy": accuracy(logits, labels),
        "mcc": matthews_correlation(logits.argmax(-1), labels),
        "nll": negative_log_likelihood(logits, labels),
        "nll_scaled": negative_log_likelihood(scaled, labels),
        "ece": expected_calibration_error(logits, labels),
        "ece_scaled": expected_calibration_error(scaled, labels),
    }


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature with the smallest NLL (Guo et al. 2017), between 1/100 and 100."""
    result: Any = minimize_scalar(
        lambda t: negative_log_likelihood(logits / np.exp(t), labels), bounds=np.log((0.01, 100)), method="bounded"
    )
    return float(np.exp(result.x))


def matthews_correlation(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Correlation of predicted and true classes, each as indicators; 0 where one of them is constant."""
    classes = int(max(predictions.max(), labels.max())) + 1
    x, y = (np.eye(classes)[v] - np.eye(classes)[v].mean(0) for v in (predictions, labels))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / norm) if norm > 0 else 0.0
