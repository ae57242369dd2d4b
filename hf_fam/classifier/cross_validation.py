"""The strength of the penalty from the training samples alone: cross-validation along a path of warm starts.

A fold is a vector of weights in which the samples that are held out have none, so no features are copied. All folds go
through the strengths together, from the strongest down, and stop when the loss of the held-out samples rises.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from .objective import Objective
from .solver import solve
from .spectrum import Spectrum
from .training_set import TrainingSet, chunks

# From strong to weak, a factor of about 1.4 apart.
DELTAS = (1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.085, 0.06, 0.042, 0.03, 0.021, 0.015, 0.01)
# The choice if no sample can be held out, because every class has one.
FALLBACK = 0.7
_FOLDS = 5
# Enough to tell strengths apart: with more samples, fewer folds are held out.
_HELD_OUT = 2000
# The path ends at this many times the lowest loss, once that loss is below this part of the one of a constant guess.
# While the penalty outweighs the loss, the loss may rise before it falls.
_RISE, _LEARNED = 1.01, 0.95
# How exact the fits of the folds are, in nats. Few features cost next to nothing and have no directions to guide the
# solver, whose estimate is rough there.
_DECREASE, _DECREASE_OF_FEW = 1e-4, 1e-6


def choose_delta(
    data: TrainingSet,
    spectrum: Spectrum,
    dimension: float,
    smoothing: float,
    center: bool,
    max_iter: int,
    verbose: int = 0,
) -> float:
    """Return the δ of ``DELTAS`` with the lowest cross-validated negative log-likelihood.

    Args:
        data: the training set.
        spectrum: of its features.
        dimension: the effective dimension of its features.
        smoothing: ε.
        center: measure the features of a fold from their mean.
        max_iter: the most L-BFGS steps of a fit.
        verbose: above 0, print the loss for each δ.

    Source:
        Warm starts along a path of penalties: Friedman, Hastie and Tibshirani 2010, "Regularization Paths for
        Generalized Linear Models via Coordinate Descent", section 2.5.
    """
    folds = held_out(data)
    if not folds:
        return FALLBACK
    parts = [(_without(data, rows, center), rows) for rows in folds]
    decrease = _DECREASE if spectrum.directions.shape[1] else _DECREASE_OF_FEW
    starts = [np.zeros(data.n_classes * (data.features.shape[1] + 1)) for _ in parts]
    frequencies = torch.zeros(data.n_classes, dtype=torch.float64)
    frequencies.index_add_(0, data.classes.cpu(), data.weights.cpu().double())
    guess = float(torch.special.entr(frequencies).sum())
    losses: list[float] = []
    for delta in DELTAS:
        total = 0.0
        for k, (part, rows) in enumerate(parts):
            objective = Objective(part, delta**2 / (2 * dimension), smoothing)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the final fit says so
                starts[k] = solve(objective, starts[k], spectrum, 0.0, max_iter, decrease=decrease).parameters
            total += _loss(data, rows, *objective.weight_and_intercept(starts[k]))
        losses.append(total / float(sum(data.weights[rows].sum() for rows in folds)))
        if verbose:
            print(f"delta {delta:g}: cross-validated loss {losses[-1]:.5g}")
        if min(losses) < _LEARNED * guess and losses[-1] > _RISE * min(losses):
            break
    return DELTAS[int(np.argmin(losses))]


def held_out(data: TrainingSet) -> list[Tensor]:
    """Return the rows of each fold that are held out.

    Neither the order of the samples nor a scale or rotation of the features changes the folds. Copies of a sample are
    in one fold, samples without weight in none. The samples of each class, sorted by the length of their features, go
    to the folds in turn. A class keeps a sample in every fold, so a class of one is never held out.
    """
    classes, norms, weights = (part.cpu().numpy() for part in (data.classes, data.squared_norms, data.weights))
    order = np.lexsort((norms, classes))
    order = order[weights[order] > 0]
    first, second = order[:-1], order[1:]
    is_copy = (classes[first] == classes[second]) & np.isclose(norms[first], norms[second], rtol=1e-6, atol=0)
    near = np.flatnonzero(is_copy)
    pairs = torch.from_numpy(np.stack([first[near], second[near]], 1)).to(data.features.device)
    for part in chunks(pairs, 2 * data.features.shape[1]):
        one, other = (data.features[rows] for rows in pairs[part].unbind(1))
        is_copy[near[part]] = (one == other).all(1).cpu().numpy()
    distinct = np.concatenate([[0], np.cumsum(~is_copy)])
    sizes = np.bincount(classes[order][np.concatenate([[True], ~is_copy])], minlength=data.n_classes)
    usable = sizes[classes[order]] > 1
    return _first_folds(order[usable], distinct[usable] % _FOLDS, data.features.device)


def _first_folds(rows: NDArray[np.int64], fold: NDArray[np.int64], device: torch.device) -> list[Tensor]:
    folds: list[Tensor] = []
    for k in range(_FOLDS):
        chosen = rows[fold == k]
        if len(chosen) and sum(map(len, folds)) < _HELD_OUT:
            folds.append(torch.from_numpy(chosen).to(device))
    return folds


def _without(data: TrainingSet, rows: Tensor, center: bool) -> TrainingSet:
    weights = data.weights.clone()
    weights[rows] = 0
    return TrainingSet.of(data.features, data.classes, weights / weights.sum(), data.n_classes, center)


def _loss(data: TrainingSet, rows: Tensor, weight: Tensor, intercept: Tensor) -> float:
    """Return the weighted sum of the negative log-likelihood of rows."""
    weight, intercept = weight.to(data.features), intercept.to(data.features)
    total = 0.0
    for part in chunks(rows[:, None], data.features.shape[1]):
        logits = torch.addmm(intercept, data.features[rows[part]], weight.T)
        losses = F.cross_entropy(logits, data.classes[rows[part]], reduction="none")
        total += float((losses * data.weights[rows[part]]).sum())
    return total
