"""Accuracy, negative log-likelihood and calibration of a classifier, from its logits.

All take ``logits`` of shape ``(items, classes)`` and integer ``labels`` of shape ``(items,)``, as arrays or as what
numpy makes arrays of, and raise ValueError where these do not fit together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of items whose largest logit is the label's.

    Raises:
        ValueError: see the module.

    Examples:
        >>> accuracy([[2.0, 1.0], [0.0, 3.0]], [0, 0])
        0.5
    """
    scores, truth = _checked(logits, labels)
    return float((scores.argmax(-1) == truth).mean())


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean of ``-log p(label)`` in nats, which rewards right confidence and punishes wrong confidence.

    Raises:
        ValueError: see the module.

    Examples:
        >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 4)  # log 2
        0.6931
    """
    scores, truth = _checked(logits, labels)
    return float(-_log_softmax(scores)[np.arange(len(truth)), truth].mean())


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """How far confidence is from accuracy (Guo et al. 2017, arXiv 1706.04599).

    Items are put into bins of equal width by the probability of their predicted class; the result is the mean, weighted
    by the items in a bin, of ``|accuracy - mean confidence|``. Biased upwards where items are few.

    Args:
        logits: see the module.
        labels: see the module.
        bins: number of bins.

    Raises:
        ValueError: ``bins`` is below 1, or see the module.

    Examples:
        >>> round(expected_calibration_error([[0.0, 0.0], [0.0, 0.0]], [0, 0]), 4)  # sure of half, right always
        0.5
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: give a whole number of at least 1.")
    scores, truth = _checked(logits, labels)
    return calibration_error(np.exp(_log_softmax(scores).max(-1)), scores.argmax(-1) == truth, bins)


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """The same from confidences, where logits would be too large to keep.

    Args:
        confidence: probability of each item's predicted class, shape ``(items,)``.
        right: whether the prediction is right, shape ``(items,)``.
        bins: number of bins.

    Raises:
        ValueError: ``bins`` is below 1, there is no item, or the shapes differ.

    Examples:
        >>> calibration_error([0.5, 0.5], [True, True])
        0.5
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: give a whole number of at least 1.")
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right)
    if sure.ndim != 1 or sure.shape != hits.shape or not len(sure):
        raise ValueError(f"confidence of shape {sure.shape} and right of shape {hits.shape}: give (items,) twice.")
    # A bin contains its upper end, so that a confidence of 1 has a place.
    index = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(index, weights=hits - sure, minlength=bins)).sum() / len(sure))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not len(truth):
        raise ValueError(
            f"logits of shape {scores.shape} and labels of shape {truth.shape}: give (items, classes) and (items,), at "
            "least one item."
        )
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ValueError(f"labels must be whole numbers from 0 to {scores.shape[1] - 1}, the number of a class.")
    return scores, truth.astype(np.int64)
