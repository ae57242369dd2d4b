"""delta="auto": the folds, and the delta with the lowest loss of samples that are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from hf_fam import FlatLogisticRegression
from hf_fam.classifier.cross_validation import DELTAS, FALLBACK, choose_delta, held_out
from hf_fam.classifier.effective_dimension import effective_dimension
from hf_fam.classifier.spectrum import Spectrum
from hf_fam.classifier.training_set import TrainingSet


def data_of(X: Any, y: Any, weights: Any = None) -> TrainingSet:
    weights = torch.ones(len(y), dtype=torch.float64) if weights is None else torch.from_numpy(weights)
    return TrainingSet.of(
        torch.from_numpy(X), torch.from_numpy(y), weights / weights.sum(), int(y.max()) + 1, center=True
    )


def noisy(size: int, width: int, wrong: float = 0.3, classes: int = 3) -> tuple[Any, Any]:
    random = np.random.default_rng()
    y = np.r_[np.repeat(np.arange(classes), 2), random.integers(classes, size=size - 2 * classes)]
    X = np.random.default_rng(0).normal(size=(classes, width))[y] + random.normal(size=(size, width))
    is_wrong = random.random(size) < wrong
    return X, np.where(is_wrong, random.integers(classes, size=size), y)


def test_each_sample_is_held_out_once_and_classes_are_spread() -> None:
    X, y = noisy(203, 5)
    folds = [part.numpy() for part in held_out(data_of(X, y))]
    assert sorted(np.concatenate(folds)) == list(range(203))
    counts = np.stack([np.bincount(y[part], minlength=3) for part in folds])
    assert np.ptp(counts, axis=0).max() <= 1


def test_folds_do_not_depend_on_the_order_or_the_basis() -> None:
    X, y = noisy(60, 5)
    order = np.random.default_rng(1).permutation(60)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    expected = [set(part.tolist()) for part in held_out(data_of(X, y))]
    moved = [set(order[part.numpy()].tolist()) for part in held_out(data_of(100 * X[order] @ rotation, y[order]))]
    assert moved == expected


def test_copies_stay_together_and_samples_without_weight_are_left_out() -> None:
    X, y = noisy(40, 5, wrong=0)
    twice = held_out(data_of(np.repeat(X, 2, 0), np.repeat(y, 2)))
    once = held_out(data_of(X, y))
    for part, single in zip(twice, once, strict=True):
        assert set((part // 2).tolist()) == set(single.tolist()) and len(part) == 2 * len(single)
    weights = np.ones(40)
    weights[:3] = 0  # one of class 0 and one of class 1 keep weights among the others
    assert not {0, 1, 2} & set(torch.cat(held_out(data_of(X, y, weights))).tolist())


def test_a_class_of_one_sample_is_not_held_out() -> None:
    X, _ = noisy(7, 5)
    assert FlatLogisticRegression().fit(X, np.arange(7)).delta_ == FALLBACK
    y = np.r_[0, 0, 0, 1, 1, 1, 2]
    assert 6 not in torch.cat(held_out(data_of(X, y)))


def test_many_samples_need_fewer_folds() -> None:
    X, y = noisy(20_000, 2)
    assert [len(part) for part in held_out(data_of(X, y))] == [4000]


@pytest.mark.parametrize(("classes", "center"), [(3, True), (3, False), (40, True)])
def test_the_choice_is_that_of_plain_fits(classes: int, center: bool) -> None:
    """The same folds with separate fits of the public estimator, from zero, on copied rows, for every delta."""
    # Of many classes, entries of the gradient are so small that a fit which looks at them alone ends at once.
    size = 80 if classes == 3 else 160
    X, y = noisy(size, 20, classes=classes)
    while np.bincount(y, minlength=classes).min() < 2:  # else no fit knows a class that is held out
        X, y = noisy(size, 20, classes=classes)
    X += 0.5
    assert excess_of_the_choice(X, y, center) < 3e-3


def test_the_choice_is_that_of_plain_fits_for_few_features_of_several_scales() -> None:
    sets = [noisy(120, 4, wrong=0.1) for _ in range(3)]
    assert max(excess_of_the_choice(X * np.logspace(1.5, -1.5, 4), y, center=True) for X, y in sets) < 1e-2


def excess_of_the_choice(X: Any, y: Any, center: bool) -> float:
    """Return the held-out loss of the choice minus the lowest one, by exact fits."""
    data, size = data_of(X, y), len(y)
    dimension = effective_dimension(data.features)
    losses = []
    for delta in DELTAS:
        total = 0.0
        for part in held_out(data):
            kept = np.setdiff1d(np.arange(size), part.numpy())
            # The strength belongs to the dimension of all samples.
            own = effective_dimension(data.features[kept])
            model = FlatLogisticRegression(delta=delta * (own / dimension) ** 0.5, center=center, tol=1e-7)
            logits = X[part] @ model.fit(X[kept], y[kept]).coef_.T + model.intercept_
            total -= log_softmax(logits, axis=1)[np.arange(len(part)), y[part]].sum()
        losses.append(total / size)
    chosen = choose_delta(data, Spectrum.of(data), dimension, smoothing=0.1, center=center, max_iter=1000)
    return float(losses[DELTAS.index(chosen)] - min(losses))


@pytest.mark.parametrize("size", [60, 300])
def test_one_large_feature_does_not_hide_the_others(size: int) -> None:
    """The effective dimension is 1 then, so only a small delta lets the other features count."""
    X, y = noisy(size, 20, wrong=0)
    X = np.c_[100 * np.random.default_rng(3).normal(size=size), 3 * X]
    assert FlatLogisticRegression().fit(X, y).score(X, y) > 0.9


def test_delta_falls_with_the_number_of_samples() -> None:
    """On average over three draws, because the grid of delta is coarse."""
    few, many = (sum(FlatLogisticRegression().fit(*noisy(size, 30)).delta_ for _ in range(3)) for size in (60, 5000))
    assert many < few
