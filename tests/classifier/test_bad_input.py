"""Bad input is answered by a sentence, before anything is fitted."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from hf_fam import FlatLogisticRegression

X = np.random.default_rng(0).normal(size=(30, 4))
Y = np.arange(30) % 3
HOLE = X.copy()
HOLE[7, 2] = np.nan
ENDLESS = X.copy()
ENDLESS[7, 2] = -np.inf
LOST = np.where(Y == 1, 0.0, 1.0)
TABLE = pandas.DataFrame(X, columns=list("abcd"))

CASES: dict[str, tuple[Any, Any, Any, str]] = {
    "one class": (X, np.zeros(30), None, "y has one class"),
    "NaN": (HOLE, Y, None, "NaN or infinite values, the first in row 7, column 2"),
    "infinity": (ENDLESS, Y, None, "NaN or infinite values, the first in row 7, column 2"),
    "NaN in a tensor": (torch.from_numpy(HOLE), Y, None, "NaN or infinite values, the first in row 7, column 2"),
    "NaN as a label": (X, np.where(Y == 1, np.nan, 0), None, "y has NaN"),
    "continuous labels": (X, X[:, 0], None, "Unknown label type"),
    "no labels": (X, None, None, "requires y to be passed"),
    "other labels": (X, Y[:-1], None, "inconsistent|X has 30 samples and y 29 labels"),
    "negative weights": (X, Y, -np.ones(30), "sample_weight has negative"),
    "NaN as a weight": (X, Y, np.full(30, np.nan), "sample_weight has negative, infinite or NaN"),
    "no weight": (X, Y, np.zeros(30), "sample_weight is zero for all samples"),
    "a class without weight": (X, Y, LOST, "all samples of class 1 have zero weight"),
    "other weights": (X, Y, np.ones(29), r"sample_weight has the shape \(29,\)"),
    "a sparse matrix": (sparse.csr_matrix(X), Y, None, "sparse matrix, which is not supported"),
    "a sparse tensor": (torch.from_numpy(X).to_sparse(), Y, None, "sparse matrix, which is not supported"),
    "constant features": (np.ones((30, 4)) * 0.1, Y, None, "all samples have the same features"),
    "an integer tensor": (torch.ones(30, 4, dtype=torch.long), Y, None, r"give X.float\(\)"),
    "one dimension": (X[:, 0], Y, None, r"X has the shape \(30,\).*Reshape your data"),
    "three dimensions": (torch.ones(30, 4, 1), Y, None, r"X has the shape \(30, 4, 1\)"),
    "no samples": (torch.ones(0, 4), Y[:0], None, r"X has the shape \(0, 4\)"),
    "no features": (torch.ones(30, 0), Y, None, r"X has the shape \(30, 0\)"),
    "tiny features": (1e-200 * X, Y, None, "out of the range of float64"),
    "squares that underflow": (1e-160 * X, Y, None, "out of the range of float64"),
    "single squares that underflow": ((1e-20 * X).astype(np.float32), Y, None, "out of the range of float32"),
    "complex features": (X + 0j, Y, None, "Complex data not supported: give real"),
    "no features at all": (None, Y, None, "X is None"),
    "words in a table": (TABLE.assign(a="word"), Y, None, "X is not valid: could not convert .* 'word'"),
    "two columns of one name": (TABLE.set_axis(list("aabc"), axis=1), Y, None, "X is not valid: .*unique column"),
    "rows of several lengths": ([[1, 2], [3]], [0, 1], None, "X is not valid"),
    "8 bits": (torch.ones(30, 4).to(torch.float8_e4m3fn), Y, None, r"give X.float\(\)"),
    "words as weights": (X, Y, ["a"] * 30, "sample_weight=.* is not an array of real numbers"),
    "complex weights": (X, Y, 1j * np.ones(30), "sample_weight=.* is not an array of real numbers"),
    "a dictionary as weights": (X, Y, {0: 1.0}, "sample_weight=.* is not an array of real numbers"),
    "a class whose weights vanish": (
        X.astype(np.float32),
        Y,
        np.where(Y == 1, 1e-60, 1),
        "all samples of class 1 have",
    ),
    "texts": (["a text"] * 30, [0, 1, 1] * 10, None, "X has texts: give their embeddings"),
    "labels of two types": (
        X,
        np.array(["a", 1, 2] * 10, dtype=object),
        None,
        "y mixes labels of the types int and str: give labels of one",
    ),
    "missing labels": (X, ["a", "b", None] * 10, None, "y has missing labels"),
    "labels with NaN": (X, pandas.Series(["a", "b", None] * 10), None, "y has missing labels"),
    "labels with NA": (X, pandas.Series(["a", "b", pandas.NA] * 10, dtype=object), None, "y has missing labels"),
    "huge features": ((1e30 * X).astype(np.float32), Y, None, "out of the range of float32"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data(case: str) -> None:
    features, labels, weights, message = CASES[case]
    with pytest.raises(ValueError, match=message) as error:
        FlatLogisticRegression().fit(features, labels, weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": -1}, {"delta": "best"}, {"delta": np.nan}, {"delta": np.inf}, {"delta": 1e300}, {"delta": None},
        {"delta": True}, {"smoothing": -0.1}, {"smoothing": 1.1}, {"smoothing": "auto"}, {"smoothing": np.nan},
        {"tol": 0}, {"tol": "small"}, {"max_iter": 0}, {"max_iter": 1.5}, {"verbose": -1},
    ],
)  # fmt: skip
def test_bad_settings(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=rf"^{name}=.*: give"):
        FlatLogisticRegression(**settings).fit(X, Y)


def test_predictions_are_asked_of_the_same_features() -> None:
    model = FlatLogisticRegression()
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.fit(X, Y)
    for features in (X[:, :3], torch.from_numpy(X[:, :3])):
        with pytest.raises(ValueError, match="3 features, but FlatLogisticRegression is expecting 4"):
            model.predict(features)
    with pytest.raises(ValueError, match="row 7, column 2"):
        model.predict_proba(HOLE)
    with pytest.raises(ValueError, match="sparse"):
        model.decision_function(sparse.csr_matrix(X))


def test_what_is_not_converged_says_so() -> None:
    with pytest.warns(ConvergenceWarning, match="stopped after 2 steps .*: increase max_iter or tol"):
        FlatLogisticRegression(max_iter=2).fit(X, Y)
    separable = np.concatenate([X, 100.0 * np.eye(3)[Y]], 1)
    with pytest.warns(ConvergenceWarning, match="with delta=0 there may be no optimum"):
        FlatLogisticRegression(delta=0, max_iter=3, tol=1e-12).fit(separable, Y)
    with pytest.warns(ConvergenceWarning, match="with smoothing=0 there may be no optimum"):
        FlatLogisticRegression(smoothing=0, max_iter=3, tol=1e-12).fit(separable, Y)


def test_views_of_every_kind_are_taken() -> None:
    expected = FlatLogisticRegression().fit(X, Y).coef_
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.repeat(X, 2, 1)
    for view in (np.asfortranarray(X), frozen, wide[:, ::2], X[::-1].copy()[::-1], X.tolist(), X.astype(">f8")):
        np.testing.assert_allclose(FlatLogisticRegression().fit(view, Y).coef_, expected, atol=1e-9)


def test_numbers_of_every_kind_are_taken() -> None:
    expected = FlatLogisticRegression().fit(X, Y).coef_
    for features in (X.astype(np.longdouble), X.astype(object), TABLE, TABLE.astype("Float64")):
        np.testing.assert_allclose(FlatLogisticRegression().fit(features, Y).coef_, expected, atol=1e-9)
    weights = (torch.ones(30, dtype=torch.bfloat16), np.full(30, 1.7e308), np.ones(30, dtype=bool), [2] * 30)
    labels = (torch.from_numpy(Y).bfloat16(), pandas.Series(Y).astype("category"), Y + 2**60)
    for y in labels:
        np.testing.assert_allclose(FlatLogisticRegression().fit(X, y).coef_, expected, atol=1e-9)
    for sample_weight in weights:
        np.testing.assert_allclose(FlatLogisticRegression().fit(X, Y, sample_weight).coef_, expected, atol=1e-9)


def test_labels_are_strings_or_numbers() -> None:
    numbers = FlatLogisticRegression().fit(X, Y)
    strings = FlatLogisticRegression().fit(X, np.array(["no", "so", "yes"])[Y])
    assert strings.classes_.tolist() == ["no", "so", "yes"]
    assert (strings.predict(X) == strings.classes_[numbers.predict(X)]).all()


def test_without_scikit_learn_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from hf_fam import *\n"
        "import hf_fam\n"
        "try: hf_fam.FlatLogisticRegression\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'hf-fam[classifier]'" in result.stdout


@pytest.mark.parametrize(
    ("precision", "remedy"), [(np.float32, "use float64 or increase tol"), (float, "so increase tol")]
)
def test_a_tolerance_beyond_the_precision_says_so(precision: Any, remedy: str) -> None:
    with pytest.warns(ConvergenceWarning, match=f"rounding permits no more, .*{remedy}"):
        FlatLogisticRegression(tol=1e-30).fit(X.astype(precision), Y)
