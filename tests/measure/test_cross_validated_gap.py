"""The generalization gap without a test set, against scikit-learn, scipy, a written-out loop and quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.datasets import make_classification
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

from hf_fam.measure.item_features import item_features
from hf_fam.measure.representativeness import cross_validated_gap, gap_of_features
from support.measured import cross_entropy, mlp, points
from support.tiny import classified, random_states, tiny_bert


def blobs(items: int = 90, features: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return make_classification(items, features, n_informative=3, n_redundant=0, n_classes=3, random_state=3)


def test_losses_are_those_of_scikit_learn() -> None:
    x, y = blobs()
    result = gap_of_features(x, y, (0.1, 0.5), folds=5, samples=2, seed=4)
    splits = StratifiedKFold(5, shuffle=True, random_state=4)
    model = LogisticRegression(max_iter=1000)
    assert result.held_out_loss == pytest.approx(
        log_loss(y, cross_val_predict(model, x, y, cv=splits, method="predict_proba"))
    )
    fitted = [
        log_loss(y[train], model.fit(x[train], y[train]).predict_proba(x[train])) for train, _ in splits.split(x, y)
    ]
    assert result.fitted_loss == pytest.approx(np.mean(fitted))
    for term in result.terms:
        assert term.gap == pytest.approx(result.held_out_loss - result.fitted_loss)
        assert term.robustness + term.representativeness == pytest.approx(term.gap)


def test_squared_errors_have_a_closed_form() -> None:
    """Around an item, the mean squared error of a linear predictor rises by the variance of its output."""
    x, generator = blobs()[0], np.random.default_rng(2)
    y = x @ generator.normal(size=x.shape[1]) + generator.normal(size=len(x))
    result = gap_of_features(x, y, (0.3,), folds=3, samples=500, seed=7)
    rises, held_out = [], []
    for train, test in KFold(3, shuffle=True, random_state=7).split(x):
        ridge = Ridge().fit(x[train], y[train])
        widths = 0.3 * np.linalg.norm(x[train], axis=1) / np.sqrt(x.shape[1])
        rises.append((widths**2).mean() * (ridge.coef_**2).sum())
        held_out.append(mean_squared_error(y[test], ridge.predict(x[test])))
    assert result.robustness[0] == pytest.approx(np.mean(rises), rel=0.02)
    assert result.held_out_loss == pytest.approx(np.mean(held_out))
    assert result.predictor == "Ridge"


def test_the_kernel_density_is_that_of_scipy() -> None:
    """Features of one length in one dimension have equal bandwidths: scipy's density of every class, on a grid."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 60)
    x = np.where((y == 1) ^ (generator.random(60) < 0.2), 1.0, -1.0)[:, None]
    delta, folds = 0.8, 4
    result = gap_of_features(x, y, (delta,), folds=folds, samples=1000, seed=1)
    grid, losses = np.linspace(-8, 8, 4001), []
    for train, _ in StratifiedKFold(folds, shuffle=True, random_state=1).split(x, y):
        model = LogisticRegression(max_iter=1000).fit(x[train], y[train])
        probabilities = model.predict_proba(grid[:, None])
        for label in (0, 1):
            centers = x[train, 0][y[train] == label]
            density = gaussian_kde(centers, bw_method=delta / centers.std(ddof=1))(grid)
            losses.append(len(centers) / len(x) * np.trapezoid(density * -np.log(probabilities[:, label]), grid))
    expected = sum(losses) / (folds - 1)
    assert result.fitted_loss + result.robustness[0] == pytest.approx(expected, rel=0.01)


def test_standard_errors_are_those_of_repeated_samples() -> None:
    """Over many samples of items, the estimate varies as much as its standard error says."""
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        y = generator.integers(0, 2, 60)
        x = generator.normal(size=(60, 2)) + y[:, None]
        result = gap_of_features(x, y, (0.3,), folds=5, samples=2, seed=seed)
        found.append((result.representativeness[0], result.standard_errors[0]))
    values, errors = np.array(found).T
    assert 0.6 < errors.mean() / values.std() < 1.6


def test_it_predicts_the_gap_of_new_items() -> None:
    """On fixed features, the gap of the folds is the gap that a large test set shows."""
    generator = np.random.default_rng(5)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = generator.integers(0, 2, count)
        return generator.normal(size=(count, 20)) + 0.3 * y[:, None], y

    gaps = []
    test_x, test_y = sample(4000)
    for _ in range(12):
        x, y = sample(150)
        model = LogisticRegression(max_iter=1000).fit(x, y)
        true = log_loss(test_y, model.predict_proba(test_x)) - log_loss(y, model.predict_proba(x))
        gaps.append((gap_of_features(x, y, (0.1,), samples=1).gap, true))
    estimated, true = np.mean(gaps, axis=0)
    assert true > 0.1 and estimated == pytest.approx(true, rel=0.25)


def test_a_model_and_its_features_give_the_same() -> None:
    model, data, states = mlp(1), points(60), random_states()
    result = cross_validated_gap(model, data, "2", (0.1, 0.4), folds=4, samples=3, loss_fn=cross_entropy, batch_size=7)
    assert states == random_states()
    features = model[:2](data.tensors[0]).detach()
    assert result == gap_of_features(features, data.tensors[1], (0.1, 0.4), folds=4, samples=3)
    assert "4 folds of 60 items with 7 features, LogisticRegression" in str(result)


def test_labels_are_read_from_dictionaries_and_unlabelled_items_left_out() -> None:
    model, data = tiny_bert().eval(), classified(24)
    kept = [{**item, "labels": int(item["labels"])} for item in data]
    shared: dict[str, Any] = {"deltas": (0.2,), "folds": 3, "samples": 1, "batch_size": 5}
    result = cross_validated_gap(model, [*kept, *({**item, "labels": -100} for item in kept[:4])], **shared)
    assert result.num_items == 24
    assert result.gap == pytest.approx(cross_validated_gap(model, kept, **shared).gap, rel=1e-6)
    items = item_features(model, kept, "head", batch_size=5, collate_fn=None, loss_fn=None, seed=0)
    assert items.labels is not None and items.labels.tolist() == [item["labels"] for item in kept]


def test_a_predictor_of_your_own_is_left_as_it_was() -> None:
    x, y = blobs()
    own = LogisticRegression(C=1e-3)
    small = gap_of_features(x, y, (0.1,), folds=3, samples=1, predictor=own)
    assert not hasattr(own, "coef_")
    assert small.gap < gap_of_features(x, y, (0.1,), folds=3, samples=1).gap


X, Y = blobs(30)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"deltas": (0.1, -1.0)}, ValueError, "deltas="),
        ({"folds": 1}, ValueError, "folds=1: give a whole number from 2"),
        ({"samples": 0}, ValueError, "samples=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"folds": 31}, ValueError, "folds=31.*30"),
        ({"folds": 20}, ValueError, "folds=20: no class has that many items"),
        ({"features": X[:, 0]}, ValueError, r"features have the shape \(30,\)"),
        ({"features": X * np.nan}, ValueError, "features contain NaN"),
        ({"labels": Y[:5]}, ValueError, r"labels have the shape \(5,\).*30 items"),
        ({"labels": Y * 0}, ValueError, "same class"),
        ({"labels": np.where(np.arange(30) == 3, 9, Y)}, ValueError, "class 9 has one item"),
        ({"labels": np.full(30, np.inf)}, ValueError, "labels contain NaN or infinity"),
        ({"predictor": LinearRegression()}, TypeError, "predictor=.*predict_proba"),
        ({"predictor": LogisticRegression}, TypeError, "predictor="),
    ],
)
def test_arguments(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gap_of_features(**{"features": X, "labels": Y, "deltas": (0.1,), "folds": 3, **given})


def test_batches_without_labels() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with pytest.raises(ValueError, match="batches have no labels"):
        cross_validated_gap(
            model, [torch.randn(4) for _ in range(8)], "0", (0.1,), loss_fn=lambda m, x: m(x).square().mean()
        )
