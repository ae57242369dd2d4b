"""The study of FlatLogisticRegression: its rules, its methods on a small table, and the benchmark's script."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "recipes" / "classifier_study"

pytest.importorskip("sklearn")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY))
    for name in ("report", "promise", "run", "tasks", "methods", "slow_rivals", "starts", "data_sets"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("modules")
def test_the_rule_chooses_by_accuracy_then_by_likelihood() -> None:
    import report

    table = pandas.DataFrame(
        [(0.1, 0.1, 2.0, 0.01), (0.5, 0.1, 1.0, -0.01), (0.7, 0.1, 0.95, -0.03), (1.0, 0.1, 0.8, -0.5)],
        columns=["delta", "smoothing", "accuracy", "nll"],
    )
    assert (
        report.chosen(table).delta == 0.7
    )  # not the best accuracy, whose likelihood is worse, nor the best likelihood


@pytest.mark.usefixtures("modules")
def test_the_first_default_is_what_the_rule_chooses() -> None:
    import report
    import run

    results = pandas.read_csv(STUDY / "results" / "choice.csv")
    assert results.groupby("task").seed.nunique().min() >= 10
    assert report.chosen_pairs(results)[0] == run.FIXED


@pytest.mark.usefixtures("modules")
def test_a_promise_needs_the_sign_and_the_level() -> None:
    import promise

    gains = pandas.Series([1.0, 1.2, 0.8, 1.1])
    assert promise.kept(gains, 1) and not promise.kept(gains, -1) and promise.kept(-gains, -1)
    assert not promise.kept(pandas.Series([1.0, -0.8, 0.9, 0.1]), 1)


@pytest.mark.usefixtures("modules")
def test_methods_on_a_small_table(tmp_path: Path) -> None:
    import run
    from starts import losses
    from tasks import Synthetic, Task, draw, draw_synthetic

    task = Task("wine", 60, noise=0.2, standardized=True, validation=40)
    sample = draw(task, tmp_path, seed=0)
    assert [len(part[1]) for part in (sample.train, sample.validation, sample.test)] == [60, 40, 78]
    np.testing.assert_allclose(sample.train[0].std(0), 1)
    rows = list(run.choose(sample))
    by_method = pandas.DataFrame(rows).groupby("method").size()
    assert by_method["flat"] == 40 and by_method["whitened"] == 8 and by_method["tuned C"] == 1
    assert all(row["accuracy"] > 60 for row in rows if row["method"] == "flat" and row["delta"] == 0.5)
    tuned = pandas.DataFrame(run.promise(sample)).set_index("method")
    assert list(tuned.index) == ["auto", "fixed", "tuned C", "C = 1", "shrinkage LDA", "ridge"]
    assert (tuned.accuracy > 60).all() and tuned.nll.isna().sum() == 1
    small = draw_synthetic(Synthetic(classes=3, shots=10, width=20), seed=0)
    assert np.ptp(losses(small, 0.5)) < 1e-6


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("width", [5, 80])
def test_shrinkage_lda_is_scikit_learns(width: int) -> None:
    from methods import ClassSpectrum, ShrinkageLDA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    random = np.random.default_rng()
    X, y = random.normal(size=(40, width)), np.r_[np.arange(4), random.integers(4, size=36)]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(X, y)
    ours = ShrinkageLDA(ClassSpectrum.of(X, y), 0.2).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("modules")
def test_early_learning_is_its_formula() -> None:
    """Of two steps, by hand: the targets of the second are 0.7 · 0.3 p₁ + 0.3 p₂."""
    pytest.importorskip("cleanlab")
    import torch
    from slow_rivals import EarlyLearning

    head, loss = torch.nn.Linear(3, 4).double(), EarlyLearning(2.0)
    features, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    first = head(features).softmax(1).detach()
    loss(head, features, labels)
    with torch.no_grad():
        head.weight += 0.1
        head.weight[0] += 0.5
    p = head(features).softmax(1)
    targets = 0.7 * 0.3 * first + 0.3 * p.detach()
    expected = torch.nn.functional.nll_loss(p.log(), labels) + 2 * torch.log(1 - (p * targets).sum(1)).mean()
    found = loss(head, features, labels)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, head.weight, retain_graph=True)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("modules")
def test_when_a_training_stops_and_what_is_averaged(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    from slow_rivals import Trained, _cross_entropy, compare_in_time
    from tasks import Task, draw

    sample = draw(Task("wine", 60, noise=0.2, standardized=True, validation=40), tmp_path, seed=0)
    X, y = sample.train[0].astype(np.float32), sample.train[1]
    first, second, mean = (
        Trained(lambda: _cross_entropy, steps=steps, average=average).fit(X, y).decision_function(X)
        for steps, average in ((1, 0), (2, 0), (2, 0.9))
    )
    np.testing.assert_allclose(mean, 0.9 * first + 0.1 * second, atol=1e-6)
    rows = pandas.DataFrame(compare_in_time(sample)).set_index("method")
    assert list(rows.index) == ["early-learning regularization", "early stopping", "moving average"]
    assert (rows.accuracy > 60).all()


def test_tables_are_written_again(tmp_path: Path) -> None:
    script = [sys.executable, str(STUDY / "report.py"), "--output", str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True, timeout=300)
    for path in (ROOT / "docs" / "generated" / "classifier_study").glob("*.md"):
        assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), path.name


def test_results_hold_no_task_twice() -> None:
    for path in {*(STUDY / "results").glob("*.csv")} - {STUDY / "results" / "starts.csv"}:
        with path.open(encoding="utf-8", newline="") as file:
            keys = [
                tuple(row[key] for key in ("task", "seed", "method", "delta", "smoothing"))
                for row in csv.DictReader(file)
            ]
        assert len(keys) == len(set(keys)), path.name


def test_the_benchmark_runs(tmp_path: Path) -> None:
    script = ROOT / "recipes" / "benchmarks" / "flat_logistic_regression.py"
    subprocess.run(
        [sys.executable, str(script), "--smoke", "--output", str(tmp_path)],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    text = (tmp_path / "cost.md").read_text(encoding="utf-8")
    assert text.count("| 60 × 8 × 3 |") == 2 and "memory beside the features" in text
