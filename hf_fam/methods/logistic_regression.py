"""Logistic regression of scikit-learn, on the stored features of a frozen backbone."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from ..inputs.packages import optional_packages
from .base import Method, put_in_front, refuse_without_classes, register

# Distance from the other logits down to those of classes that the training data does not have.
ABSENT = 30.0


class FittedHead(Method):
    """A method that fits the head to the stored features of a frozen backbone, without gradient steps."""

    has_learning_rate = False

    def apply(self, trainer: Any) -> None:
        """Replace the training by a fit.

        Raises:
            ValueError: the head is no single layer on stored features.
        """
        refuse_without_classes(self, trainer)
        put_in_front(trainer, FittedHeadTrainer)
        trainer.start_fitting(self.fit)

    @abstractmethod
    def fit(self, features: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
        """Return a fitted classifier of scikit-learn.

        Args:
            features: shape ``(items, features)``.
            labels: shape ``(items,)``.
        """


@register
class LogisticRegression(FittedHead):
    """The head is scikit-learn's ``LogisticRegression``; the strength is C, the inverse of the L2 penalty."""

    name = "logistic_regression"
    field = "logistic_regression_c"
    description = "the head is scikit-learn's LogisticRegression with this C; needs freeze_backbone"
    default = 1.0

    def fit(self, features: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
        """Return a fitted classifier."""
        with optional_packages("method='logistic_regression'", "compare"):
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.linear_model import LogisticRegression as Classifier

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return Classifier(C=self.value, max_iter=1000).fit(features, labels)


class FittedHeadTrainer(Trainer):
    """A Trainer whose training fits the head, a single linear layer, to stored features."""

    def start_fitting(self, fit: Any) -> None:
        """Turn fitting on.

        Args:
            fit: called as ``fit(features, labels)``; returns an object with ``classes_``, ``coef_`` and ``intercept_``.

        Raises:
            ValueError: the head is no single linear layer on stored features.
        """
        model: Any = self.model
        trained = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        features = getattr(self.train_dataset, "features", None)
        if not isinstance(features, torch.Tensor):
            raise ValueError("a head that is fitted needs stored features of a frozen backbone: set freeze_backbone.")
        if len(trained) != 1 or not isinstance(trained[0], nn.Linear):
            raise ValueError(
                f"a head that is fitted has to be one linear layer, and {type(model).__name__} trains more: choose "
                "another method, such as fam."
            )
        self._head, self._fit = trained[0], fit

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Fit the head; there are no steps, and nothing is resumed."""
        data: Any = self.train_dataset
        start = time.perf_counter()
        is_labeled = data.labels >= 0
        features, labels = data.features[is_labeled].double().numpy(), data.labels[is_labeled].numpy()
        self.classifier = self._fit(features, labels)
        weight, bias = linear_layer(self.classifier, self._head.out_features)
        with torch.no_grad():
            self._head.weight.copy_(torch.from_numpy(weight))
            if self._head.bias is not None:
                self._head.bias.copy_(torch.from_numpy(bias))
        seconds = time.perf_counter() - start
        return TrainOutput(0, 0.0, {"train_runtime": seconds})


def linear_layer(classifier: Any, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight ``(classes, features)`` and bias ``(classes,)`` of a fitted classifier.

    Args:
        classifier: has ``classes_``, ``coef_`` and ``intercept_``. With two classes, there is one row for the second.
        classes: number of logits.
    """
    present, rows, offsets = classifier.classes_, classifier.coef_, classifier.intercept_
    if len(present) == 2 and len(rows) == 1:
        rows, offsets = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-offsets / 2, offsets / 2])
    weight = np.zeros((classes, rows.shape[1]))
    bias = np.full(classes, offsets.min() - ABSENT)
    weight[present], bias[present] = rows, offsets
    return weight, bias
