"""Accuracy, negative log-likelihood and calibration of a classifier, from its logits.

All functions take ``logits`` of shape ``(items, classes)`` and integer ``labels`` of shape ``(items,)``. Both are
arrays, or lists that numpy converts to arrays. The demo imports this module and runs without scikit-learn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of items whose largest logit is that of the label.

    Raises:
        ValueError: the shapes do not fit, there is no item, or a label is not a class.

    Examples:
        >>> accuracy([[2.0, 1.0], [0.0, 3.0]], [0, 0])
        0.5
    """
    scores, classes = _as_arrays(logits, labels)
    return float((scores.argmax(-1) == classes).mean())


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of ``-log p(label)``, in nats.

    It rewards right confidence and punishes wrong confidence.

    Raises:
        ValueError: the shapes do not fit, there is no item, or a label is not a class.

    Examples:
        >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 4)  # log 2
        0.6931
    """
    scores, classes = _as_arrays(logits, labels)
    return float(-_log_softmax(scores)[np.arange(len(classes)), classes].mean())


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return how far confidence is from accuracy (Guo et al. 2017).

    Items are put into bins of equal width by the probability of their predicted class. The result is the mean of
    ``|accuracy - mean confidence|``, weighted by the items in a bin. It is biased upwards for few items. Source: arXiv
    1706.04599.

    Args:
        logits: shape ``(items, classes)``.
        labels: integers, shape ``(items,)``.
        bins: number of bins.

    Raises:
        ValueError: ``bins`` is below 1, or see `accuracy`.

    Examples:
        >>> round(expected_calibration_error([[0.0, 0.0], [0.0, 0.0]], [0, 0]), 4)  # confidence 0.5, accuracy 1
        0.5
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: give a whole number of at least 1.")
    scores, classes = _as_arrays(logits, labels)
    return calibration_error(np.exp(_log_softmax(scores).max(-1)), scores.argmax(-1) == classes, bins)


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """Return the same from confidences, for logits that are too large to keep.

    Args:
        confidence: probability of each item's predicted class, shape ``(items,)``.
        right: True for a right prediction, shape ``(items,)``.
        bins: number of bins.

    Raises:
        ValueError: ``bins`` is below 1, there is no item, or the shapes differ.

    Examples:
        >>> calibration_error([0.5, 0.5], [True, True])
        0.5
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: give a whole number of at least 1.")
    confidences, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right)
    if confidences.ndim != 1 or confidences.shape != hits.shape or not len(confidences):
        raise ValueError(
            f"confidence of shape {confidences.shape} and right of shape {hits.shape}: give shape (items,) for both."
        )
    # A bin contains its upper end, so that a confidence of 1 has a place.
    index = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(index, weights=hits - confidences, minlength=bins)).sum() / len(confidences))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _as_arrays(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    scores, classes = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or classes.shape != scores.shape[:1] or not len(classes):
        raise ValueError(
            f"logits of shape {scores.shape} and labels of shape {classes.shape}: give (items, classes) and (items,), "
            "at least one item."
        )
    if not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise ValueError(f"labels must be whole numbers from 0 to {scores.shape[1] - 1}, the number of a class.")
    return scores, classes.astype(np.int64)
