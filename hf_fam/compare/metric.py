"""The metric that methods are compared by, from the predictions of a trained model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.kinds import require_flag
from ..inputs.text import LONGEST_VALUE, quote
from ..measure.classification_metrics import negative_log_likelihood
from ..methods.item_loss import shifts_labels

ACCURACY = "accuracy"
# Metrics between 0 and 1, which are shown in percent, so that a difference is in points.
IN_PERCENT = ("accuracy", "f1", "precision", "recall", "matthews_correlation", "pearson", "spearman", "ece")
# Metrics between -1 and 1.
CORRELATIONS = ("matthews_correlation", "pearson", "spearman")
# Metrics of which less is better, besides every name that ends in "loss".
LOWER_IS_BETTER = ("nll", "ece", "perplexity", "mean_squared_error", "mse", "mae", "rmse", "wer", "cer")


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: ``"accuracy"``, or a name in what the Trainer's ``compute_metrics`` returns.
        compute: computes the metric from an ``EvalPrediction``: one number, or a number for each test item. The mean
            over items is the metric. None stands for the metric of the name.
        higher_is_better: True if more is better.
    """

    name: str = ACCURACY
    compute: Callable[[Any], Any] | None = None
    higher_is_better: bool = True

    @classmethod
    def of(cls, metric: str | Callable[[Any], Any], higher_is_better: bool | None = None) -> Metric:
        """Return a metric by its name, or of a function.

        Args:
            metric: the name or the function.
            higher_is_better: None: False for losses and errors, by the name.

        Raises:
            TypeError: an argument is of a wrong class.
        """
        if not isinstance(metric, str) and not callable(metric):
            raise TypeError(f"metric={quote(metric)}: give a name or a function of the predictions.")
        if higher_is_better is not None:
            higher_is_better = require_flag("higher_is_better", higher_is_better)
        compute = None if isinstance(metric, str) else metric
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        if higher_is_better is None:
            higher_is_better = name not in LOWER_IS_BETTER and not name.endswith("loss")
        return cls(name, compute, higher_is_better)

    @property
    def scale(self) -> float:
        """Return 100 for a metric in percent, whose differences are points, and 1 for any other."""
        return 100.0 if self.compute is None and self.name in IN_PERCENT else 1.0

    @property
    def unit(self) -> str:
        """Return the unit of differences."""
        return " points" if self.scale == 100 else ""

    @property
    def largest_difference(self) -> float:
        """Return the largest difference of two scores that is possible."""
        return self.scale * (2.0 if self.name in CORRELATIONS else 1.0) if self.scale == 100 else math.inf

    def default_margin(self) -> float:
        """Return the margin of 0.5 points.

        Raises:
            ValueError: the metric is not in percent.
        """
        if self.scale == 100:
            return 0.5
        raise ValueError(
            f"margin: give the largest difference of metric={quote(self.name)} that makes no practical difference."
        )

    def scores(self, trainer: Any, predicted: Any) -> NDArray[np.float64]:
        """Return the metric times `scale`: one number, or a number for each test item.

        Args:
            trainer: the ``Trainer``.
            predicted: what ``Trainer.predict`` returned.

        Raises:
            ValueError: the metric is not computed; the message has the names of those that are.
        """
        if self.compute is not None:
            value = self.compute(predicted)
        else:
            hits = correct_items(trainer, predicted) if self.name == ACCURACY else None
            value = hits if hits is not None else self._named(predicted.metrics or {})
        return np.atleast_1d(np.asarray(value, dtype=np.float64)) * self.scale

    def _named(self, metrics: dict[str, float]) -> float:
        computed = {name.removeprefix("test_"): value for name, value in metrics.items()}
        if self.name in computed:
            return computed[self.name]
        names = sorted(name for name in computed if not name.endswith(("runtime", "per_second", "preparation_time")))
        near = difflib.get_close_matches(self.name[:LONGEST_VALUE], names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"metric={quote(self.name)} is not computed: {hint}The Trainer computes {', '.join(names) or 'none'}; more "
            "with compute_metrics."
        )


def logits_and_labels(trainer: Any, predicted: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Return logits ``(items, classes)`` and labels ``(items,)`` of all labeled items, or None if there are none.

    There are none for numbers, for predictions that the Trainer reduced, and for language models, whose labels are
    shifted.
    """
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    labels = predicted.label_ids
    if trainer.preprocess_logits_for_metrics is not None or shifts_labels(trainer.model):
        return None
    if logits is None or not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        return None
    logits = np.asarray(logits)
    if logits.shape[:-1] != labels.shape or logits.ndim < 2 or logits.shape[-1] < 2:
        return None
    rows, classes = logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.reshape(-1)
    return rows[classes >= 0], classes[classes >= 0]


def correct_items(trainer: Any, predicted: Any) -> NDArray[np.float64] | None:
    """Return 1 for each item that is classified correctly and 0 for the others, or None if there are no classes."""
    rows = logits_and_labels(trainer, predicted)
    return None if rows is None else (rows[0].argmax(-1) == rows[1]).astype(np.float64)


def likelihood(trainer: Any, predicted: Any) -> float | None:
    """Return the negative log-likelihood, or None if there are no classes or it is not finite."""
    rows = logits_and_labels(trainer, predicted)
    if rows is None:
        value = (predicted.metrics or {}).get("test_nll")
    else:
        value = negative_log_likelihood(*rows) if len(rows[1]) else None
    return float(value) if value is not None and math.isfinite(value) else None
