"""Logistic regression with smoothed relative flatness, on the stored features of a frozen backbone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.packages import optional_packages
from .base import register
from .logistic_regression import FittedHead


@register
class FlatLogistic(FittedHead):
    """The head is `hf_fam.FlatLogisticRegression`, which chooses its strength from the training data."""

    name = "flat_logistic_regression"
    description = "the head is hf_fam.FlatLogisticRegression, which needs no tuning; needs freeze_backbone"

    def fit(self, features: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
        """Return a fitted classifier."""
        with optional_packages("method='flat_logistic_regression'", "compare"):
            from sklearn.exceptions import ConvergenceWarning

        from ..classifier.estimator import FlatLogisticRegression

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return FlatLogisticRegression().fit(features, labels)
