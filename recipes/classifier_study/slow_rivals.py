"""Rivals that need more time: cross-validated C, robust losses, mixup, weight decay and CleanLearning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from cleanlab.classification import CleanLearning
from methods import CS, Logits, Scores, logits_of, scores, tuned, untuned
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from tasks import PROMISE, Sample
from torch.nn import functional as F

from hf_fam.methods.bi_tempered import BiTempered
from hf_fam.methods.generalized_cross_entropy import GeneralizedCrossEntropy
from hf_fam.methods.symmetric_cross_entropy import SymmetricCrossEntropy

# Those on which eight fits of every method take seconds.
TASKS = tuple(
    task for task in PROMISE if task.data in ("cifar10_earlier", "fashion_earlier", "sst2_first") or task.train == 300
)
STEPS = 200
LEARNING_RATE = 0.01
Loss = Callable[[torch.nn.Linear, torch.Tensor, torch.Tensor], torch.Tensor]


class Trained:
    """A linear classifier, trained on all samples at once by AdamW from zero."""

    def __init__(self, loss: Loss, weight_decay: float = 0.0) -> None:
        self._loss, self._weight_decay = loss, weight_decay

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Trained:
        torch.manual_seed(0)
        X, y = torch.from_numpy(features), torch.from_numpy(labels)
        self._head = torch.nn.Linear(X.shape[1], int(y.max()) + 1)
        for part in self._head.parameters():
            torch.nn.init.zeros_(part)
        optimizer = torch.optim.AdamW(self._head.parameters(), LEARNING_RATE, weight_decay=self._weight_decay)
        for _ in range(STEPS):
            optimizer.zero_grad()
            self._loss(self._head, X, y).backward()
            optimizer.step()
        return self

    def decision_function(self, features: NDArray[np.float32]) -> Logits:
        with torch.no_grad():
            logits: Logits = self._head(torch.from_numpy(features)).double().numpy()
        return logits

    def predict_proba(self, features: NDArray[np.float32]) -> Logits:
        return np.exp(self.decision_function(features))


class Cleaned(CleanLearning):
    """CleanLearning with the decision function of the classifier that it ends with."""

    def decision_function(self, features: NDArray[np.float32]) -> Logits:
        decisions: Logits = self.clf.decision_function(features)
        return decisions


def candidates() -> dict[str, list[Any]]:
    """Return eight candidates of each rival."""
    return {
        "CleanLearning": [Cleaned(LogisticRegression(C=C, max_iter=300), seed=0, cv_n_folds=3) for C in CS],
        "weight decay": [Trained(_cross_entropy, decay) for decay in (0.03, 0.1, 0.3, 1, 3, 10, 30, 100)],
        "generalized cross-entropy": [
            Trained(_of(GeneralizedCrossEntropy(q))) for q in (0.1, 0.2, 0.35, 0.5, 0.6, 0.7, 0.85, 0.95)
        ],
        "symmetric cross-entropy": [
            Trained(_of(SymmetricCrossEntropy(beta))) for beta in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
        ],
        "bi-tempered": [Trained(_of(BiTempered(s))) for s in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)],
        "mixup": [Trained(_mixup(alpha)) for alpha in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)],
    }


def compare(sample: Sample) -> Iterator[dict[str, Any]]:
    """Yield rows of FlatLogisticRegression, and of the tuned rivals."""
    sample = _single(sample)
    yield _row("auto", untuned(sample)[0])
    for method, several in candidates().items():
        yield _row(method, tuned(sample, several))


def cross_validate(sample: Sample) -> Iterator[dict[str, Any]]:
    """Yield rows of FlatLogisticRegression, and of logistic regression whose C is chosen in the same way."""
    sample = _single(sample)
    yield _row("auto", untuned(sample)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegressionCV(Cs=CS, cv=5, scoring="neg_log_loss", max_iter=300).fit(*sample.train)
    yield _row("C by cross-validation", scores(logits_of(model, sample.test[0]), sample.test[1]))


def _single(sample: Sample) -> Sample:
    parts = (sample.train, sample.validation, sample.test)
    return Sample(*((part[0].astype(np.float32), part[1]) for part in parts))


def _row(method: str, found: Scores) -> dict[str, Any]:
    return {"method": method, "accuracy": found.accuracy, "nll": found.nll}


def _cross_entropy(head: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(features), labels)


def _of(method: Any) -> Loss:
    return lambda head, features, labels: method.loss(head(features), labels).mean()


def _mixup(alpha: float) -> Loss:
    def loss(head: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        partners = torch.randperm(len(labels))
        logits = head(share * features + (1 - share) * features[partners])
        return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[partners])

    return loss
