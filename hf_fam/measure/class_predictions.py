"""How right a classifier is on the items that are measured: accuracy, calibration, and the accuracy of each class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..data.checks import IGNORED
from .classification_metrics import accuracy, expected_calibration_error
from .data import Batches, select_arguments, to_device
from .forward import frozen_for_evaluation

# Quantile of the normal distribution for an interval of 95 %.
_NORMAL_QUANTILE = 1.959964


@dataclass(frozen=True)
class Predictions:
    """The predictions of a classifier.

    Attributes:
        logits: shape ``(items, classes)``.
        labels: numbers of classes, shape ``(items,)``.
        class_names: the name of each class.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Return the share of right predictions."""
        return accuracy(self.logits, self.labels)

    @property
    def calibration_error(self) -> float:
        """Return the expected calibration error, see `expected_calibration_error`."""
        return expected_calibration_error(self.logits, self.labels)

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Return True for each right prediction, shape ``(items,)``."""
        return self.logits.argmax(-1) == self.labels

    def class_accuracies(self) -> list[tuple[str, float]]:
        """Return name and accuracy of each class that occurs, the lowest accuracy first."""
        classes = np.unique(self.labels)
        values = [(self.class_names[k], float(self.is_right[self.labels == k].mean())) for k in classes]
        return sorted(values, key=lambda pair: pair[1])

    def accuracy_gain(self, other: Predictions) -> tuple[float, float, float] | None:
        """Return by how much the accuracy exceeds that of another model on the same items, with a 95 % interval.

        The items are paired, so that the interval is that of a mean of differences.

        Returns:
            Difference, lower and upper end; None if the labels are not the same.
        """
        if self.labels.shape != other.labels.shape or (self.labels != other.labels).any():
            return None
        return paired_interval(self.is_right.astype(float) - other.is_right.astype(float))


def paired_interval(differences: ArrayLike) -> tuple[float, float, float]:
    """Return the mean of differences, and the ends of its normal 95 % interval.

    Examples:
        >>> [round(x, 2) for x in paired_interval([0.0, 1.0, 0.0, 1.0])]
        [0.5, -0.07, 1.07]
    """
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    half = _NORMAL_QUANTILE * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean, mean - half, mean + half


def predict_classes(
    model: nn.Module, items: Any, collate_fn: Callable[[list[Any]], Any], batch_size: int = 32
) -> Predictions | None:
    """Return a classifier's predictions for items.

    Items without a label are left out.

    Args:
        model: the model; it is left as it was.
        items: a data set.
        collate_fn: makes a batch of items, with ``labels``.
        batch_size: items in a batch.

    Returns:
        None if the model does not choose one of several classes for each item.
    """
    logits, labels = [], []
    with frozen_for_evaluation(model) as network, torch.no_grad():
        device = next(network.parameters()).device
        for _, batch in Batches(items, batch_size, collate_fn).of_this_process():
            inputs = select_arguments(network, to_device(batch, device))
            truth = inputs.get("labels")
            output = getattr(network(**inputs), "logits", None)
            if output is None or truth is None or not _is_one_class(output, truth):
                return None
            is_kept = truth != IGNORED
            logits.append(output[is_kept].double().cpu())
            labels.append(truth[is_kept].cpu())
    if not sum(map(len, labels)):
        return None
    names = getattr(model.config, "id2label", None) or {}
    scores = torch.cat(logits).numpy()
    return Predictions(scores, torch.cat(labels).numpy(), tuple(str(names.get(k, k)) for k in range(scores.shape[1])))


def _is_one_class(logits: Any, labels: Any) -> bool:
    return (
        isinstance(logits, Tensor)
        and isinstance(labels, Tensor)
        and logits.dim() == 2
        and logits.shape[1] > 1
        and labels.shape == logits.shape[:1]
        and not labels.is_floating_point()
    )
