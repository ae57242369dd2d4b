"""FlatLogisticRegression: logistic regression with smoothed relative flatness in place of the L2 penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from .cross_validation import choose_delta
from .effective_dimension import effective_dimension
from .inputs import (
    checked_features,
    checked_labels,
    checked_settings,
    checked_weights,
    refuse_constant,
    refuse_out_of_range,
)
from .objective import Objective
from .solver import solve
from .spectrum import Spectrum
from .training_set import TrainingSet


class FlatLogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression on fixed features, penalized by its relative flatness.

    It minimizes the mean cross-entropy plus λ Σ c ‖φ‖² Var_q(w) over weights w and intercepts, by L-BFGS on all
    samples.

    φ are the features minus their mean. c are the sample weights, with sum one. Var_q(w) is the variance of the
    classes' weights under the smoothed probabilities q = (1 − ε) softmax + ε / C. λ = δ² / (2d) belongs to random
    perturbations of the features of relative size δ, in d effective dimensions. Scaling or rotating the features
    changes no prediction.

    Features are used as they are. Standardize them if their units differ.

    Args:
        delta: δ, the relative size of the perturbation; 0 is logistic regression without a penalty. ``"auto"``
            chooses it by cross-validation on the training samples.
        smoothing: ε. With 0, the penalty of a model that is sure of itself vanishes, and there may be no optimum.
        center: measure ‖φ‖ from the mean of the features. The prediction has an intercept in either case.
        tol: stop when no entry of the gradient is larger. The features count as scaled to unit mean square.
        max_iter: the most L-BFGS steps.
        warm_start: start from the previous fit, instead of zero.
        verbose: steps from one printed line to the next, with a summary at the end; 0 prints nothing.

    Attributes:
        coef_: weights of shape (C, m), or (1, m) for two classes. A tensor on the features' device if ``X`` was one.
        intercept_: of shape (C,), or (1,) for two classes.
        classes_: the labels, sorted, of shape (C,).
        n_iter_: the number of L-BFGS steps, of shape (1,).
        n_features_in_: m.
        feature_names_in_: names of the columns, if ``X`` was a table with names.
        effective_dimension_: d = (tr S)² / tr(S²), S being the covariance of the features.
        delta_: δ, as chosen or as given.
        strength_: λ.
        objective_: the minimum that was found.

    Source:
        Relative flatness: Petzka et al., NeurIPS 2021, "Relative Flatness and Generalization". The smoothing is ours:
        docs/smoothing.md.

    Examples:
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X, y = load_wine(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), FlatLogisticRegression()).fit(X[::2], y[::2])
        >>> model.score(X[1::2], y[1::2]) > 0.9
        True
    """

    classes_: NDArray[Any]
    coef_: Any
    intercept_: Any

    def __init__(
        self,
        *,
        delta: float | str = "auto",
        smoothing: float = 0.1,
        center: bool = True,
        tol: float = 1e-4,
        max_iter: int = 1000,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.delta = delta
        self.smoothing = smoothing
        self.center = center
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FlatLogisticRegression:
        """Fit the weights and intercepts.

        Args:
            X: features of shape (n, m): an array, a table, or a tensor, which stays on its device. Single and half
                precision are computed in single precision.
            y: labels of shape (n,), numbers or strings.
            sample_weight: of shape (n,), at least 0. Only their ratios count.

        Returns:
            The estimator itself.

        Raises:
            ValueError: a setting or the data is not valid; the message names it and says what to do.

        Warns:
            ConvergenceWarning: L-BFGS did not reach ``tol``; the message says what to do.
        """
        checked_settings(self.get_params())
        previous = (self.classes_, *self._two_sided()) if self.warm_start and hasattr(self, "coef_") else None
        features = checked_features(self, X, reset=True)
        classes, codes = checked_labels(self, y, len(features))
        numbers = torch.from_numpy(codes).to(features.device)
        weights = checked_weights(sample_weight, features, numbers, classes)
        refuse_constant(features)
        self.effective_dimension_ = effective_dimension(features, weights)
        data = TrainingSet.of(features, numbers, weights, len(classes), self.center)
        refuse_out_of_range(self.effective_dimension_, data.scale, features)
        spectrum = Spectrum.of(data)
        self.delta_ = self._delta(data, spectrum)
        self.strength_ = self.delta_**2 / (2 * self.effective_dimension_)
        objective = Objective(data, self.strength_, float(self.smoothing))
        start = np.zeros(len(classes) * (features.shape[1] + 1))
        if previous is not None:
            start = self._start_from(objective, classes, *previous)
        solution = solve(objective, start, spectrum, self.tol, self.max_iter, self.verbose)
        weight, intercept = objective.weight_and_intercept(solution.parameters)
        if len(classes) == 2:
            weight, intercept = weight[1:] - weight[:1], intercept[1:] - intercept[:1]
        self.classes_, self.n_iter_ = classes, np.array([solution.steps], dtype=np.int32)
        self.objective_ = solution.value
        self.coef_, self.intercept_ = (self._like(X, part.to(features)) for part in (weight, intercept))
        return self

    def decision_function(self, X: Any) -> Any:
        """Return the logits, of shape (n, C), or (n,) for two classes.

        With two classes they are the logits of the second.

        Args:
            X: features of shape (n, m). The result is a tensor on its device if ``X`` is one.
        """
        return self._like(X, self._logits(X))

    def predict(self, X: Any) -> Any:
        """Return the most probable label of each sample, of shape (n,).

        Args:
            X: features of shape (n, m). The result is a tensor on its device if ``X`` is one and labels are numbers.
        """
        logits = self._logits(X)
        numbers = (logits > 0).long() if logits.ndim == 1 else logits.argmax(1)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "biuf":
            return torch.from_numpy(self.classes_).to(numbers.device)[numbers]
        return self.classes_[numbers.cpu().numpy()]

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes, of shape (n, C).

        Args:
            X: features of shape (n, m). The result is a tensor on its device if ``X`` is one.
        """
        return self._like(X, self._two_columns(X).softmax(1))

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of the probabilities of the classes, of shape (n, C).

        Args:
            X: features of shape (n, m). The result is a tensor on its device if ``X`` is one.
        """
        return self._like(X, self._two_columns(X).log_softmax(1))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy.

        Args:
            X: features of shape (n, m).
            y: the right labels, of shape (n,).
            sample_weight: of shape (n,); None: all alike.
        """
        arrays = (part.cpu().numpy() if isinstance(part, Tensor) else part for part in (y, self.predict(X)))
        return float(accuracy_score(*arrays, sample_weight=sample_weight))

    def write_to(self, layer: nn.Linear) -> None:
        """Write weights and intercepts into a linear layer.

        Args:
            layer: with a bias, and an output for each class in the order of ``classes_``. For two classes, one output,
                for a sigmoid, is right as well.

        Raises:
            ValueError: the layer has another size, or no bias.
        """
        check_is_fitted(self)
        weight, intercept = self._two_sided()
        if len(self.classes_) == 2 and layer.out_features == 1:
            weight, intercept = weight[1:] - weight[:1], intercept[1:] - intercept[:1]
        if layer.weight.shape != weight.shape:
            raise ValueError(
                f"the layer's weight has the shape {tuple(layer.weight.shape)}: {len(self.classes_)} classes and "
                f"{self.n_features_in_} features need torch.nn.Linear({weight.shape[1]}, {weight.shape[0]})."
            )
        if layer.bias is None:
            raise ValueError("the layer has no bias for the intercepts: give torch.nn.Linear(..., bias=True).")
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(intercept)

    def _delta(self, data: TrainingSet, spectrum: Spectrum) -> float:
        if self.delta != "auto":
            return float(self.delta)
        return choose_delta(
            data,
            spectrum,
            self.effective_dimension_,
            float(self.smoothing),
            self.center,
            self.max_iter,
            self.verbose,
        )

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        features = checked_features(self, X, reset=False)
        weight, intercept = (torch.as_tensor(part).to(features) for part in (self.coef_, self.intercept_))
        logits = torch.addmm(intercept, features, weight.T)
        return logits.squeeze(1) if len(self.classes_) == 2 else logits

    def _two_columns(self, X: Any) -> Tensor:
        """Return logits of both of two classes."""
        logits = self._logits(X)
        return torch.stack([torch.zeros_like(logits), logits], 1) if logits.ndim == 1 else logits

    def _two_sided(self) -> tuple[Tensor, Tensor]:
        """Return weights (C, m) and intercepts (C,), also for two classes."""
        weight, intercept = torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_)
        if len(self.classes_) == 2:
            return torch.cat([-weight / 2, weight / 2]), torch.cat([-intercept / 2, intercept / 2])
        return weight, intercept

    @staticmethod
    def _like(X: Any, result: Tensor) -> Any:
        """Return a tensor as it is if the features were one, else an array."""
        return result if isinstance(X, Tensor) else result.cpu().numpy()

    @staticmethod
    def _start_from(
        objective: Objective, classes: NDArray[Any], old_classes: NDArray[Any], weight: Tensor, intercept: Tensor
    ) -> NDArray[np.float64]:
        if weight.shape != objective.shape or not np.array_equal(classes, old_classes):
            raise ValueError(
                f"warm_start=True, but the previous fit had {len(old_classes)} classes and {weight.shape[1]} features, "
                f"and this one has {objective.shape[0]} and {objective.shape[1]}, or other labels: set "
                "warm_start=False."
            )
        return objective.parameters_of(weight, intercept)
