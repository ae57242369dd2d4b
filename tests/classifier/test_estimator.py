"""FlatLogisticRegression keeps scikit-learn's conventions, finds optima, and works where classifiers are taken."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from hf_fam import FlatLogisticRegression
from hf_fam.classifier.cross_validation import held_out
from hf_fam.classifier.objective import Objective
from hf_fam.classifier.training_set import TrainingSet


def overlapping(classes: int, width: int = 6, size: int = 300, seed: int = 0) -> tuple[Any, Any]:
    """Features of classes that no hyperplane separates."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=size)
    means = random.normal(size=(classes, width))
    return means[labels] + random.normal(size=(size, width)) * np.arange(1, width + 1) ** 0.5 + 3, labels


def test_scikit_learns_checks_pass() -> None:
    outcomes = check_estimator(FlatLogisticRegression(), on_fail=None, on_skip=None)
    assert len(outcomes) > 40
    assert [o["check_name"] for o in outcomes if o["status"] not in ("passed", "skipped")] == []
    # Skipped unless an environment variable is set before scipy is imported.
    assert {o["check_name"] for o in outcomes if o["status"] == "skipped"} <= {"check_array_api_input"}


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_penalty_it_is_scikit_learns(classes: int, weighted: bool) -> None:
    X, y = overlapping(classes, seed=classes)
    weights = np.random.default_rng(1).uniform(0.1, 2, len(y)) if weighted else None
    ours = FlatLogisticRegression(delta=0, tol=1e-9).fit(X, y, weights)
    theirs = LogisticRegression(C=np.inf, tol=1e-9, max_iter=10000).fit(X, y, weights)
    assert ours.coef_.shape == theirs.coef_.shape and ours.intercept_.shape == theirs.intercept_.shape
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=2e-5)
    np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), atol=2e-4)
    decisions = theirs.decision_function(X)
    if classes > 2:
        decisions = decisions - decisions.mean(1, keepdims=True)
        np.testing.assert_allclose(ours.coef_.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(ours.decision_function(X), decisions, atol=2e-4)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("center", [True, False])
def test_the_end_is_stationary(classes: int, center: bool) -> None:
    X, y = overlapping(classes)
    model = FlatLogisticRegression(delta=0.7, smoothing=0.1, center=center, tol=1e-8).fit(X, y)
    weight = torch.from_numpy(model.coef_)
    if classes == 2:
        weight = torch.cat([-weight / 2, weight / 2])
    weight.requires_grad_()
    features, labels = torch.from_numpy(X), torch.from_numpy(y)
    intercept = torch.from_numpy(model.intercept_)
    intercept = torch.cat([-intercept / 2, intercept / 2]) if classes == 2 else intercept
    intercept.requires_grad_()
    origin = features.mean(0) if center else torch.zeros_like(features[0])
    logits = features @ weight.T + intercept
    q = 0.9 * logits.softmax(1) + 0.1 / classes
    variance = q @ weight.square().sum(1) - (q @ weight).square().sum(1)
    term = ((features - origin).square().sum(1) * variance).mean()
    loss = nn.functional.cross_entropy(logits, labels) + model.strength_ * term
    gradients = torch.autograd.grad(loss, (weight, intercept))
    assert max(float(part.abs().max()) for part in gradients) < 1e-6
    assert model.objective_ == pytest.approx(loss.item(), rel=1e-12)
    assert model.strength_ == pytest.approx(0.49 / 2 / model.effective_dimension_)


def test_scaled_and_rotated_features_change_no_prediction() -> None:
    X, y = overlapping(4)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    expected = FlatLogisticRegression(tol=1e-8).fit(X, y).predict_proba(X)
    for changed in (1e-6 * X, 1e6 * X, X @ rotation):
        found = FlatLogisticRegression(tol=1e-8).fit(changed, y).predict_proba(changed)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    shifted = FlatLogisticRegression(tol=1e-8).fit(X + 50, y).predict_proba(X + 50)
    np.testing.assert_allclose(shifted, expected, atol=1e-6)


def test_weights_are_repetitions() -> None:
    X, y = overlapping(3, size=80)
    counts = np.random.default_rng(0).integers(1, 4, len(y))
    weighted = FlatLogisticRegression(tol=1e-8).fit(X, y, 7.0 * counts)
    repeated = FlatLogisticRegression(tol=1e-8).fit(np.repeat(X, counts, 0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_single_precision_agrees_with_double(classes: int) -> None:
    X, y = overlapping(classes, size=1000)
    double = FlatLogisticRegression(tol=1e-6).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = FlatLogisticRegression(tol=1e-5).fit(X.astype(np.float32), y)
    assert single.coef_.dtype == np.float32 and single.predict_proba(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(single.predict_proba(X.astype(np.float32)), double.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_tensors_in_tensors_out(classes: int) -> None:
    X, y = overlapping(classes)
    arrays = FlatLogisticRegression().fit(X, y)
    features, labels = torch.from_numpy(X).requires_grad_(), torch.from_numpy(y)
    tensors = FlatLogisticRegression().fit(features, labels, torch.ones(len(y)))
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        found = getattr(tensors, name)(features)
        assert isinstance(found, torch.Tensor) and found.device == features.device and not found.requires_grad
        np.testing.assert_allclose(found.numpy(), getattr(arrays, name)(X), atol=1e-9)
        np.testing.assert_allclose(getattr(tensors, name)(X), found.numpy(), atol=1e-12)
        assert isinstance(getattr(arrays, name)(features), torch.Tensor)
    assert isinstance(tensors.coef_, torch.Tensor) and tensors.n_features_in_ == 6
    assert tensors.score(features, labels) == arrays.score(X, y)
    half = FlatLogisticRegression().fit(features.bfloat16(), labels)
    assert half.coef_.dtype == torch.float32
    named = FlatLogisticRegression().fit(features, np.array(["a", "b", "c", "d"])[y])
    assert named.predict(features)[0] in {"a", "b", "c", "d"}


def test_it_starts_where_it_ended() -> None:
    X, y = overlapping(3)
    for data in (X, torch.from_numpy(X)):
        model = FlatLogisticRegression(warm_start=True, tol=1e-7).fit(data, y)
        first, coef = int(model.n_iter_[0]), model.coef_
        model.fit(data, y)
        assert first > 5 and model.n_iter_[0] <= 1
        np.testing.assert_allclose(model.coef_, coef, atol=1e-6)
    two = FlatLogisticRegression(warm_start=True, tol=1e-7).fit(X, y == 1)
    assert two.fit(X, y == 1).n_iter_[0] <= 1
    with pytest.raises(ValueError, match="warm_start=True"):
        two.fit(X, y)


def test_steps_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = overlapping(3)
    steps = int(FlatLogisticRegression(delta=0.5).fit(X, y).n_iter_[0])
    assert capsys.readouterr().out == ""
    FlatLogisticRegression(delta=0.5, verbose=3).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == steps // 3 + 1 and lines[0].startswith("step 3: objective ")
    assert lines[-1].startswith(f"{steps} steps: objective ")


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_layer_gets_the_weights(classes: int) -> None:
    X, y = overlapping(classes)
    model = FlatLogisticRegression().fit(X, y)
    layer = nn.Linear(6, classes).double()
    model.write_to(layer)
    logits = layer(torch.from_numpy(X))
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), model.predict_proba(X), atol=1e-12)
    if classes == 2:
        layer = nn.Linear(6, 1).double()
        model.write_to(layer)
        logits = layer(torch.from_numpy(X)).squeeze(1)
        np.testing.assert_allclose(logits.detach().numpy(), model.decision_function(X), atol=1e-12)
    for wrong in (nn.Linear(6, classes + 2), nn.Linear(5, classes), nn.Linear(6, classes, bias=False)):
        with pytest.raises(ValueError, match=r"the layer.*torch\.nn\.Linear"):
            model.write_to(wrong)


def test_it_works_where_scikit_learn_takes_a_classifier() -> None:
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), FlatLogisticRegression())
    predicted = cross_val_predict(pipeline, X, y, cv=3, method="predict_proba")
    assert (predicted.argmax(1) == y).mean() > 0.9
    search = GridSearchCV(pipeline, {"flatlogisticregression__delta": [0.3, "auto"]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9
    assert CalibratedClassifierCV(pipeline, cv=3).fit(X, y).score(X, y) > 0.9
    model = FlatLogisticRegression(delta=0.3).fit(X, y)
    assert clone(model).get_params()["delta"] == 0.3
    assert (pickle.loads(pickle.dumps(model)).predict(X) == model.predict(X)).all()


def test_cleanlab_finds_wrong_labels_with_it() -> None:
    classification = pytest.importorskip("cleanlab.classification")
    X, y = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    wrong = random.permutation(len(y))[:180]
    noisy = y.copy()
    noisy[wrong] = (noisy[wrong] + random.integers(1, 10, len(wrong))) % 10
    model = classification.CleanLearning(FlatLogisticRegression(tol=1e-3), cv_n_folds=3).fit(X / 16, noisy)
    flagged = np.flatnonzero(model.get_label_issues()["is_label_issue"])
    assert len(np.intersect1d(flagged, wrong)) > 150
    assert model.score(X / 16, y) > 0.93


def test_every_class_needs_only_one_sample() -> None:
    X, _ = overlapping(2, size=7)
    model = FlatLogisticRegression().fit(X, list("abcdefg"))
    assert model.predict(X).tolist() == list("abcdefg")


@pytest.mark.parametrize("size", [50, 20000])
def test_memory_beyond_the_features_is_small(size: int) -> None:
    """Peak of what torch allocates during value and gradient, from its own profiler."""
    width, classes = 256, 10
    random = torch.Generator().manual_seed(0)
    features = torch.randn(size, width, generator=random)
    labels = torch.randint(classes, (size,), generator=random)
    data = TrainingSet.of(features, labels, features.new_full((size,), 1 / size), classes, True)
    objective = Objective(data, 0.1, 0.1)
    start = np.zeros(classes * (width + 1))
    objective(start)
    assert peak_bytes(lambda: objective(start)) < 16 * 2**20 < max(features.nbytes, 17 * 2**20)
    assert peak_bytes(lambda: TrainingSet.of(features, labels, data.weights, classes, True)) < 4 * 2**20
    # Of one length, so that any two samples could be copies.
    data = TrainingSet.of(torch.sign(features), labels, data.weights, classes, False)
    assert peak_bytes(lambda: held_out(data)) < 4 * 2**20


def peak_bytes(program: Any) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        program()
    peak = used = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            used += event.nbytes()
            peak = max(peak, used)
    return peak
