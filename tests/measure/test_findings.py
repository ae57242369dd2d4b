"""The sentences of the report, and the predictions behind them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from hf_fam.measure.class_predictions import Predictions, paired_interval, predict_classes
from hf_fam.measure.findings import MeasuredModel, expected_rise, findings, sharpest_layer
from hf_fam.measure.results import FlatnessTable, LayerFlatness
from support.tiny import tiny_bert


def layer(name: str, kappa: float, error: float = 0.1, m: int = 4, loss: float = 0.5) -> LayerFlatness:
    return LayerFlatness(
        name,
        kappa,
        error,
        error,
        0.0,
        None,
        None,
        None,
        None,
        None,
        1.5,
        m,
        3,
        60,
        loss,
        "closed_form",
        "rows",
        0,
        0,
        0.2,
    )


def table(*layers: LayerFlatness) -> FlatnessTable:
    return FlatnessTable(layers, {})


def test_the_sharpest_layer_is_the_one_whose_perturbation_costs_most() -> None:
    """Not the one of the largest kappa, which grows with the width."""
    wide, narrow = layer("wide", 6.0, m=8), layer("narrow", 4.0, m=2)
    assert sharpest_layer(table(wide, narrow)) is narrow
    assert expected_rise(narrow, 0.1) == pytest.approx(0.1**2 / (2 * 2) * 4.0)
    sentence = findings(MeasuredModel("m", table(wide, narrow)))[1]
    assert "sharpest of 2 layers, by κ/m, is narrow" in sentence and "from 0.5 to about 0.51" in sentence


def test_a_comparison_says_that_features_are_not_centered() -> None:
    one, other = (MeasuredModel(name, table(layer("head", kappa))) for name, kappa in (("one", 4.0), ("other", 1.0)))
    assert any("trained with centered features" in sentence for sentence in findings(one, other))
    assert not any("centered" in sentence for sentence in findings(one))


def test_a_negative_kappa_is_not_called_a_rise() -> None:
    assert "not at a minimum" in findings(MeasuredModel("m", table(layer("head", -1.0))))[1]


@pytest.mark.parametrize(
    ("kappa", "words"), [(1.0, "flatter there"), (4.0, "sharper there"), (2.1, "no difference beyond")]
)
def test_a_second_model(kappa: float, words: str) -> None:
    one, other = MeasuredModel("a", table(layer("head", kappa))), MeasuredModel("b", table(layer("head", 2.0)))
    said = findings(one, other)
    assert words in said[-2] and "of b" in said[-2]
    less_trained = MeasuredModel("b", table(layer("head", 2.0, loss=1.0)))
    assert "compare the flatness of models at equal loss" in findings(one, less_trained)[-1]
    assert "no layer in common" in findings(one, MeasuredModel("b", table(layer("other", 2.0))))[-1]


def test_accuracies_of_two_models_are_paired() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    one, other = (Predictions(random.normal(size=(200, 3)), labels, ("a", "b", "c")) for _ in range(2))
    differences = (one.logits.argmax(1) == labels).astype(float) - (other.logits.argmax(1) == labels)
    mean, low, high = one.accuracy_gain(other) or (0, 0, 0)
    assert mean == pytest.approx(one.accuracy - other.accuracy)
    assert (low, high) == pytest.approx(stats.norm.interval(0.95, differences.mean(), stats.sem(differences)))
    assert one.accuracy_gain(dataclasses.replace(other, labels=(labels + 1) % 3)) is None
    assert paired_interval([1.0])[1:] == (-np.inf, np.inf)


def test_predictions_are_the_models() -> None:
    bert = tiny_bert()
    items = [{"input_ids": [k % 7, 3, 4], "labels": -100 if k == 2 else k % 3} for k in range(10)]
    kept = [item for item in items if item["labels"] >= 0]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([item[name] for item in batch]) for name in batch[0]}

    seen = predict_classes(bert, items, collate, batch_size=4)
    assert seen is not None and seen.labels.tolist() == [item["labels"] for item in kept]
    with torch.no_grad():
        expected = bert.eval()(input_ids=torch.tensor([item["input_ids"] for item in kept])).logits
    np.testing.assert_allclose(seen.logits, expected.numpy(), atol=1e-5)


def test_a_small_rise_is_shown_by_its_digits() -> None:
    table = FlatnessTable([layer("classifier", 0.032, m=4, loss=0.1251)], {})
    assert "the loss rises from 0.1251 to about 0.12514." in findings(MeasuredModel("m", table))[1]


def test_two_models_may_have_been_trained_in_different_ways() -> None:
    advice = "Were the two models trained in different ways? Then compare with --normalize_features, too."
    for is_normalized in (True, False):
        model = MeasuredModel("m", FlatnessTable([layer("a", 2.0)], {"normalize_features": is_normalized}))
        assert (advice in findings(model, model)) is not is_normalized
