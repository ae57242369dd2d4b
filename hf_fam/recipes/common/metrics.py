"""Metrics of the recipes, computed by scikit-learn, scipy and `hf_fam.measure`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from transformers import EvalPrediction

from ...measure.classification_metrics import expected_calibration_error, negative_log_likelihood

# Names of the metrics, before any is computed.
CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews_correlation", "nll", "ece")
REGRESSION_METRICS = ("pearson", "spearman", "mean_squared_error")


def classification_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Return accuracy, F1, Matthews correlation, NLL and calibration error.

    F1 is that of class 1 for two classes, and the mean over the classes for more. NLL is in nats. Rows without a label
    do not count.

    Args:
        evaluated: logits and labels.
    """
    logits, labels = labeled_rows(evaluated)
    classes = logits.argmax(-1)
    average = "binary" if logits.shape[-1] == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, classes)),
        "f1": float(f1_score(labels, classes, average=average, zero_division=0.0)),
        "matthews_correlation": float(matthews_corrcoef(labels, classes)),
        "nll": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(logits, labels),
    }


def regression_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Return mean squared error, and correlations if there are two items or more.

    Correlations are NaN if all predictions or all labels are the same.

    Args:
        evaluated: predicted numbers and labels.
    """
    predicted = first_output(evaluated.predictions).reshape(-1).astype(np.float64)
    labels = np.asarray(evaluated.label_ids).reshape(-1).astype(np.float64)
    correlations = {"pearson": pearsonr, "spearman": spearmanr} if len(labels) > 1 else {}
    return {
        **{name: float(correlation(labels, predicted)[0]) for name, correlation in correlations.items()},
        "mean_squared_error": float(mean_squared_error(labels, predicted)),
    }


def labeled_rows(evaluated: EvalPrediction) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Return logits of shape ``(rows, classes)`` and labels of shape ``(rows,)`` of all rows with a label."""
    logits, labels = first_output(evaluated.predictions), np.asarray(evaluated.label_ids)
    logits, labels = logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.reshape(-1)
    has_label = labels >= 0
    return logits[has_label], labels[has_label]


def first_output(predictions: Any) -> NDArray[np.floating]:
    """Return the logits of a model that may return more."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
