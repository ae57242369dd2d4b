"""The methods of the study: each returns logits for validation and test samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from tasks import Sample

from hf_fam import FlatLogisticRegression
from hf_fam.classifier.objective import Objective
from hf_fam.classifier.solver import solve
from hf_fam.classifier.spectrum import Spectrum
from hf_fam.classifier.training_set import TrainingSet
from hf_fam.measure.classification_metrics import accuracy, negative_log_likelihood

CS = tuple(10.0**k for k in range(-4, 4))
DELTAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Accuracy in percent and negative log-likelihood."""

    accuracy: float
    nll: float


def scores(logits: Logits, labels: NDArray[np.int64]) -> Scores:
    return Scores(100 * accuracy(logits, labels), negative_log_likelihood(logits, labels))


def flat_path(sample: Sample, strengths: Sequence[float], smoothing: float) -> Iterator[Scores]:
    """Yield test scores of the smoothed term, strength by strength; each fit starts where the previous one ended."""
    X, y = (torch.from_numpy(part) for part in sample.train)
    classes = int(y.max()) + 1
    data = TrainingSet.of(X, y, torch.full((len(y),), 1 / len(y), dtype=X.dtype), classes, center=True)
    start, spectrum = np.zeros(classes * (X.shape[1] + 1)), Spectrum.of(data)
    for strength in strengths:
        objective = Objective(data, strength, smoothing)
        start = solve(objective, start, spectrum, tol=1e-4, max_iter=2000).parameters
        weight, intercept = (part.numpy() for part in objective.weight_and_intercept(start))
        yield scores(sample.test[0] @ weight.T + intercept, sample.test[1])


def tuned_logistic(sample: Sample, max_iter: int) -> tuple[Scores, Scores]:
    """Return test scores of logistic regression with C tuned on validation samples, and with C = 1."""
    tried = []
    for C in CS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of nearly no penalty; it competes as it is
            model = LogisticRegression(C=C, max_iter=max_iter).fit(*sample.train)
        validation, test = (scores(logits_of(model, part[0]), part[1]) for part in (sample.validation, sample.test))
        tried.append((validation, test))
    by_accuracy = max(tried, key=lambda pair: (pair[0].accuracy, -pair[0].nll))[1]
    by_nll = min(tried, key=lambda pair: pair[0].nll)[1]
    return Scores(by_accuracy.accuracy, by_nll.nll), tried[CS.index(1.0)][1]


def untuned(sample: Sample) -> tuple[Scores, float]:
    """Return test scores of FlatLogisticRegression as it is, and the δ that it chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = FlatLogisticRegression().fit(*sample.train)
    return scores(logits_of(model, sample.test[0]), sample.test[1]), model.delta_


def tuned(sample: Sample, candidates: Sequence[Any]) -> Scores:
    """Return test scores of the best candidate on validation samples, chosen for each score on its own.

    A candidate without probabilities has no likelihood; its likelihood is NaN.
    """
    tried = []
    for model in candidates:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of solvers that stop early, which compete as they are
            model.fit(*sample.train)
        tried.append([scores(logits_of(model, part[0]), part[1]) for part in (sample.validation, sample.test)])
    has_probabilities = hasattr(candidates[0], "predict_proba")
    by_accuracy = max(tried, key=lambda pair: (pair[0].accuracy, -pair[0].nll))[1]
    by_nll = min(tried, key=lambda pair: pair[0].nll)[1]
    return Scores(by_accuracy.accuracy, by_nll.nll if has_probabilities else math.nan)


def rivals(sample: Sample) -> dict[str, list[Any]]:
    """Return eight candidates of each other linear classifier that has a closed form."""
    shared = ClassSpectrum.of(*sample.train)
    return {
        "shrinkage LDA": [ShrinkageLDA(shared, share) for share in SHRINKAGES],
        "ridge": [RidgeClassifier(alpha=10.0**k) for k in range(-1, 7)],
    }


@dataclass(frozen=True)
class ClassSpectrum:
    """What all shrinkages share: the means of the classes, and the covariance within classes by its eigenvectors."""

    priors: Logits
    means: Logits
    variances: Logits
    directions: Logits

    @classmethod
    def of(cls, features: NDArray[np.float64], labels: NDArray[np.int64]) -> ClassSpectrum:
        counts = np.bincount(labels)
        means = np.stack([features[labels == k].mean(0) for k in range(len(counts))])
        within = (features - means[labels]) / np.sqrt(len(labels))
        _, singular, directions = np.linalg.svd(within, full_matrices=False)
        return cls(counts / len(labels), means, singular**2, directions)


class ShrinkageLDA:
    """scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)``, from a spectrum that is shared."""

    def __init__(self, spectrum: ClassSpectrum, shrinkage: float) -> None:
        self._spectrum, self._shrinkage = spectrum, shrinkage

    def fit(self, features: NDArray[np.float64], labels: NDArray[np.int64]) -> ShrinkageLDA:
        parts = self._spectrum
        floor = self._shrinkage * parts.variances.sum() / features.shape[1]
        inside = parts.means @ parts.directions.T
        scaled = inside * (1 / ((1 - self._shrinkage) * parts.variances + floor) - 1 / floor)
        self._coef = parts.means / floor + scaled @ parts.directions
        self._intercept = np.log(parts.priors) - 0.5 * (self._coef * parts.means).sum(1)
        return self

    def decision_function(self, features: NDArray[np.float64]) -> Logits:
        return features @ self._coef.T + self._intercept

    def predict_proba(self, features: NDArray[np.float64]) -> Logits:
        return softmax(self.decision_function(features), axis=1)


def logits_of(model: Any, features: NDArray[np.float64]) -> Logits:
    decisions = model.decision_function(features)
    return np.stack([0 * decisions, decisions], 1) if decisions.ndim == 1 else decisions


def dimensions(features: NDArray[np.float64]) -> dict[str, float]:
    """Return the measures of how many directions the features vary in."""
    centered = features - features.mean(0)
    spectrum = np.linalg.svd(centered, compute_uv=False) ** 2
    share = spectrum[spectrum > 0] / spectrum.sum()
    about_zero = np.linalg.svd(features, compute_uv=False) ** 2
    return {
        "participation": 1 / (share**2).sum(),
        "stable rank": 1 / share.max(),
        "entropy": float(np.exp(-(share * np.log(share)).sum())),
        "stable rank about zero": about_zero.sum() / about_zero.max(),
        "features": features.shape[1],
        "constant": 100.0,
    }


def whitened(sample: Sample) -> tuple[Sample, int]:
    """Return the samples with features of unit covariance on the training samples, and their rank."""
    mean = sample.train[0].mean(0)
    _, singular, directions = np.linalg.svd(sample.train[0] - mean, full_matrices=False)
    rank = int((singular > 1e-6 * singular[0]).sum())
    back = directions[:rank].T / singular[:rank] * np.sqrt(len(sample.train[0]))
    parts = (((part[0] - mean) @ back, part[1]) for part in (sample.train, sample.validation, sample.test))
    return Sample(*parts), rank
