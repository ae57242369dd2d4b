"""Rivals that need more time: cross-validated C, robust losses, mixup, weight decay, CleanLearning, when to stop."""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
    """A linear classifier, trained on all samples at once by AdamW from zero.

    Args:
        new_loss: makes the loss of a training, which may keep a state.
        weight_decay: of AdamW.
        steps: how many.
        average: decay of the exponential moving average of the weights, which it ends with; 0: the last weights.
    """

    def __init__(
        self, new_loss: Callable[[], Loss], weight_decay: float = 0.0, steps: int = STEPS, average: float = 0.0
    ) -> None:
        self._new_loss, self._weight_decay, self._steps, self._average = new_loss, weight_decay, steps, average

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Trained:
        torch.manual_seed(0)
        X, y = torch.from_numpy(features), torch.from_numpy(labels)
        head = torch.nn.Linear(X.shape[1], int(y.max()) + 1)
        for part in head.parameters():
            torch.nn.init.zeros_(part)
        averaged = AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(self._average))
        optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=self._weight_decay)
        loss = self._new_loss()
        for _ in range(self._steps):
            optimizer.zero_grad()
            loss(head, X, y).backward()
            optimizer.step()
            averaged.update_parameters(head)
        self._head = averaged
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
        "weight decay": [Trained(lambda: _cross_entropy, decay) for decay in (0.03, 0.1, 0.3, 1, 3, 10, 30, 100)],
        "generalized cross-entropy": [
            Trained(_of(GeneralizedCrossEntropy(q))) for q in (0.1, 0.2, 0.35, 0.5, 0.6, 0.7, 0.85, 0.95)
        ],
        "symmetric cross-entropy": [
            Trained(_of(SymmetricCrossEntropy(beta))) for beta in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
        ],
        "bi-tempered": [Trained(_of(BiTempered(s))) for s in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)],
        "mixup": [Trained(lambda alpha=alpha: _mixup(alpha)) for alpha in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)],
    }


def candidates_in_time() -> dict[str, list[Any]]:
    """Return eight candidates of each rival that looks at the course of a training."""
    return {
        "early-learning regularization": [
            Trained(lambda strength=strength: EarlyLearning(strength)) for strength in (0.1, 0.3, 1, 2, 3, 5, 7, 10)
        ],
        "early stopping": [
            Trained(lambda: _cross_entropy, steps=steps) for steps in (2, 5, 10, 20, 40, 70, 120, STEPS)
        ],
        "moving average": [
            Trained(lambda: _cross_entropy, average=decay) for decay in (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
        ],
    }


def compare(sample: Sample) -> Iterator[dict[str, Any]]:
    """Yield rows of FlatLogisticRegression, and of the tuned rivals."""
    sample = _single(sample)
    yield _row("auto", untuned(sample)[0])
    for method, several in candidates().items():
        yield _row(method, tuned(sample, several))


def compare_in_time(sample: Sample) -> Iterator[dict[str, Any]]:
    """Yield rows of the rivals that look at the course of a training."""
    sample = _single(sample)
    for method, several in candidates_in_time().items():
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


class EarlyLearning:
    """Early-learning regularization (Liu et al., NeurIPS 2020, "Early-Learning Regularization Prevents Memorization").

    Cross-entropy plus strength · mean log(1 − ⟨p, t⟩), t being the moving average of the sample's probabilities p.
    """

    _MEMORY = 0.7
    _SMALLEST = 1e-4

    def __init__(self, strength: float) -> None:
        self._strength = strength
        self._targets: torch.Tensor | None = None

    def __call__(self, head: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = head(features)
        p = logits.softmax(1).clamp(self._SMALLEST, 1 - self._SMALLEST)
        now = (p / p.sum(1, keepdim=True)).detach()
        previous = torch.zeros_like(now) if self._targets is None else self._targets
        self._targets = self._MEMORY * previous + (1 - self._MEMORY) * now
        agreement = (self._targets * p).sum(1)
        return F.cross_entropy(logits, labels) + self._strength * (1 - agreement).log().mean()


def _of(method: Any) -> Callable[[], Loss]:
    return lambda: lambda head, features, labels: method.loss(head(features), labels).mean()


def _mixup(alpha: float) -> Loss:
    def loss(head: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        partners = torch.randperm(len(labels))
        logits = head(share * features + (1 - share) * features[partners])
        return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[partners])

    return loss
