"""A scorer for `interpolate` that a path cannot raise without end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .decoding import in_evaluation_mode, matrix_of
from .realism_scores import confidence, is_constant
from .sample_checks import check_function, check_samples

# A standard deviation. The realism of `interpolate` adds 10 to the range of the scores, so a unit must be of that size.
UNIT = 10.0
# Standard deviations above the mean at which the density no longer counts.
CAP = 1.0
# Added to the variances of the features, relative to their mean.
RIDGE = 1e-2
# Smallest unit of the entropy, in nats. Entropies of an almost perfect classifier hardly vary.
FINEST_ENTROPY = 0.1
# Fewest samples, and samples that go through the user's functions at once.
FEWEST, CHUNK = 20, 500


class RealismScorer:
    """Score samples by how typical their features are and how sure a classifier is.

    A critic may give its highest scores to samples unlike any that it was trained on, and a search finds them. This
    score leaves a search nothing to find: it falls in all directions away from the reference, and has a largest value.

    The score is 10 (min(a, 1) + min(b, 0)). Here, a is the log-density of the features, by one normal distribution for
    each class with a common covariance matrix. b is minus the entropy of the classifier. Both are shifted by their mean
    on the reference and divided by their standard deviation there, b by at least 0.1 nats. The cap of a keeps a path
    from average samples, which have the highest density.

    Args:
        reference: samples of shape (n, ...), at least 20: those that the generator makes of codes of real samples, or
            real samples.
        features: from samples to (n, m), differentiable, such as the last hidden layer of a classifier. Give the judge
            another one.
        classifier: from samples to logits (n, classes), or to an object with ``logits``.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or the features do not vary.
        TypeError: features or classifier cannot be called.

    Examples:
        >>> reference = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> scorer = RealismScorer(reference, features=lambda x: x, classifier=lambda x: 9 * x)
        >>> scores = scorer(torch.tensor([[1.0, -1.0], [9.0, 0.0]]))
        >>> bool(scores[0] > 0), bool(scores[1] < -100)
        (True, True)
    """

    def __init__(
        self, reference: Tensor, *, features: Callable[[Tensor], Any], classifier: Callable[[Tensor], Any]
    ) -> None:
        check_samples("reference", reference, FEWEST)
        for name, function in (("features", features), ("classifier", classifier)):
            check_function(name, function)
        self._features, self._classifier = features, classifier
        with torch.no_grad(), in_evaluation_mode(features, classifier):
            parts = reference.split(CHUNK)
            rows = torch.cat([matrix_of("features", features, part) for part in parts]).double()
            logits = torch.cat([matrix_of("classifier", classifier, part) for part in parts]).double()
        for name, values in (("features", rows), ("classifier", logits)):
            if not values.isfinite().all():
                raise ValueError(f"{name} has values for the reference that are not finite: check the {name}.")
        _, numbers = logits.argmax(1).unique(return_inverse=True)
        counts = numbers.bincount().to(rows)
        self._means = torch.zeros(len(counts), rows.shape[1]).to(rows).index_add(0, numbers, rows) / counts[:, None]
        self._log_shares = (counts / len(rows)).log()
        centered = rows - self._means[numbers]
        covariance = centered.T @ centered / len(rows)
        ridge = RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(rows.dtype).tiny)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(rows.shape[1]).to(rows))
        # The norm of x times this matrix is the Mahalanobis norm of x.
        self._whiten = torch.linalg.inv(factor).T
        logs = self._log_density(rows)
        if is_constant(logs):
            raise ValueError("the features of the reference are all the same: give other features.")
        self._of_density = _mean_and_deviation(logs, 0)
        self._of_confidence = _mean_and_deviation(confidence(logits), FINEST_ENTROPY)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the score of each sample (n, ...), of shape (n,), at most 10."""
        rows = matrix_of("features", self._features, samples)
        logits = matrix_of("classifier", self._classifier, samples)
        typical = _standardized(self._log_density(rows), self._of_density).clamp(max=CAP)
        sure = _standardized(confidence(logits), self._of_confidence).clamp(max=0)
        return UNIT * (typical + sure)

    def _log_density(self, rows: Tensor) -> Tensor:
        """Return the log-density up to a constant, in the precision of the rows."""
        whiten = self._whiten.to(rows)
        distances = ((rows @ whiten)[:, None] - self._means.to(rows) @ whiten).square().sum(2)
        return (self._log_shares.to(rows) - 0.5 * distances).logsumexp(1)


def _mean_and_deviation(values: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of values, the latter at least ``least``."""
    return values.mean(), values.std().clamp(min=least)


def _standardized(values: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    return (values - by[0].to(values)) / by[1].to(values)
