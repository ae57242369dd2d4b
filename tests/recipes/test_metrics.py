"""The metrics of the recipes are what independent software says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

pytest.importorskip("datasets")
pytest.importorskip("sklearn")

from transformers import EvalPrediction

from hf_fam.measure.data import IGNORED
from hf_fam.recipes.causal_lm import reduce_logits, token_metrics
from hf_fam.recipes.common.metrics import classification_metrics, regression_metrics


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng()


@pytest.mark.parametrize("classes", [2, 4])
def test_classification(generator: np.random.Generator, classes: int) -> None:
    logits, labels = generator.normal(size=(40, classes)), generator.integers(classes, size=40)
    found = classification_metrics(EvalPrediction(logits, labels))
    guess = logits.argmax(-1)
    assert found["accuracy"] == pytest.approx((guess == labels).mean())
    ones = [(2 * ((guess == c) & (labels == c)).sum()) / max(1, (guess == c).sum() + (labels == c).sum())
            for c in range(classes)]  # fmt: skip
    assert found["f1"] == pytest.approx(ones[1] if classes == 2 else np.mean(ones))
    assert found["nll"] == pytest.approx(float(F.cross_entropy(torch.tensor(logits), torch.tensor(labels))))
    x, y = (np.eye(classes)[v] - np.eye(classes)[v].mean(0) for v in (guess, labels))
    assert found["matthews_correlation"] == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    p = torch.tensor(logits).softmax(-1).numpy().max(-1)
    error = 0.0
    for k in range(15):
        inside = (p > k / 15) & (p <= (k + 1) / 15)
        if inside.any():
            error += inside.mean() * abs((guess == labels)[inside].mean() - p[inside].mean())
    assert found["ece"] == pytest.approx(error)


def test_rows_without_a_label_do_not_count(generator: np.random.Generator) -> None:
    logits, labels = generator.normal(size=(3, 5, 3)), generator.integers(3, size=(3, 5))
    labels[1, 2:] = IGNORED
    kept = labels.reshape(-1) >= 0
    assert classification_metrics(EvalPrediction(logits, labels)) == classification_metrics(
        EvalPrediction(logits.reshape(-1, 3)[kept], labels.reshape(-1)[kept])
    )


def test_regression(generator: np.random.Generator) -> None:
    values, truth = generator.normal(size=(30, 1)), generator.normal(size=30)
    found = regression_metrics(EvalPrediction(values, truth))
    assert found["pearson"] == pytest.approx(np.corrcoef(values[:, 0], truth)[0, 1])
    ranks = [stats.rankdata(v) for v in (values[:, 0], truth)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["mean_squared_error"] == pytest.approx(((values[:, 0] - truth) ** 2).mean())


def test_regression_of_one_item() -> None:
    """Which has no correlation."""
    found = regression_metrics(EvalPrediction(np.array([[2.0]]), np.array([3.0])))
    assert found == {"mean_squared_error": 1.0}


def test_tokens_of_a_language_model() -> None:
    """The likelihood of the reduced logits is the model's own loss."""
    logits, labels = torch.randn(3, 6, 9, dtype=torch.float64), torch.randint(9, (3, 6))
    labels[0, :3] = labels[2, 4:] = IGNORED
    reduced = reduce_logits((logits, None), labels)
    found = token_metrics(EvalPrediction(reduced.numpy(), labels.numpy()))
    shifted, targets = logits[:, :-1].reshape(-1, 9), labels[:, 1:].reshape(-1)
    assert found["nll"] == pytest.approx(float(F.cross_entropy(shifted, targets, ignore_index=IGNORED)), rel=1e-5)
    kept = targets != IGNORED
    expected = classification_metrics(EvalPrediction(shifted[kept].numpy(), targets[kept].numpy()))
    assert found["accuracy"] == pytest.approx(expected["accuracy"])
    assert found["ece"] == pytest.approx(expected["ece"], abs=1e-5)
