"""Items and batches without a label (-100): they neither decide nor count."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification

from hf_fam import measure_relative_flatness
from hf_fam.measure.data import item_weights, to_device
from hf_fam.measure.robustness import feature_robustness
from support.arrangements import llama
from support.measured import cross_entropy, mlp, points
from support.tiny import classified, texts, tiny_bert

BELOW_ATTENTION = "bert.encoder.layer.0.output.dense"


def without_labels(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "labels": [-100] * 6 if isinstance(item["labels"], list) else -100} for item in items]


def tagger() -> BertForTokenClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3,
        attn_implementation="eager",
    )  # fmt: skip
    return BertForTokenClassification(config).double()


def tagged(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(3, 50, (count, 6), generator=generator), torch.arange(6 * count).view(count, 6) % 3
    return [{"input_ids": t, "labels": y} for t, y in zip(tokens.tolist(), labels.tolist(), strict=True)]


@pytest.mark.parametrize("given", [{}, {"normalize_features": True}])
def test_a_first_batch_without_labels_decides_nothing(given: dict[str, Any]) -> None:
    """On it no rows would be coupled, and sums over single rows miss what attention adds between them."""
    model, data, layers = tagger(), tagged(8), [BELOW_ATTENTION, "head"]
    measured = {"measures": ("trace",), "batch_size": 4, "probes": 200}
    after = measure_relative_flatness(model, [*without_labels(tagged(8)), *data], layers, **measured, **given)
    assert [r.coupling for r in after] == ["items", "rows"] and after["classifier"].estimator == "closed_form"
    assert [r.num_items for r in after] == [8, 8]
    if not given:  # the deviations are those of all features
        alone = measure_relative_flatness(model, data, layers, **measured)
        for one, other in zip(alone, after, strict=True):
            error = 4 * (one.standard_error_probes**2 + other.standard_error_probes**2) ** 0.5
            assert other.kappa == pytest.approx(one.kappa, abs=error, rel=1e-9)
            assert other.loss == pytest.approx(one.loss, rel=1e-9)


def test_items_without_a_label_do_not_count() -> None:
    """Whole batches without a label, batches with some, and one with them alone among single items."""
    model, data = tiny_bert(dropout=0.0).double(), classified(24)
    mixed = [item if k % 2 else without_labels([item])[0] for k, item in enumerate(data[:8])]
    (result,) = measure_relative_flatness(
        model, [*without_labels(data[8:12]), *mixed, *data[12:]], "head", ("trace", "max_eigenvalue"), batch_size=4
    )
    (true,) = measure_relative_flatness(
        model, [*mixed[1::2], *data[12:]], "head", ("trace", "max_eigenvalue"), batch_size=16
    )
    assert result.num_items == true.num_items == 16 and len(result.item_kappas) == 16
    for name in ("kappa", "kappa_max", "standard_error", "loss"):
        assert getattr(result, name) == pytest.approx(getattr(true, name), rel=1e-9)


def test_a_requested_error_waits_for_labels() -> None:
    model, data = tiny_bert(dropout=0.0), classified(24)
    (result,) = measure_relative_flatness(
        model, [*without_labels(data), *data], "head", ("trace",), batch_size=8, relative_error=0.9
    )
    assert result.num_items == 8


@pytest.mark.parametrize("estimator", ["auto", "hessian"])
def test_no_label_at_all(estimator: str) -> None:
    for model, data in ((tiny_bert(), classified(4)), (tagger(), tagged(4))):
        with pytest.raises(ValueError, match="no item has a label.*-100"):
            measure_relative_flatness(model, without_labels(data), estimator=estimator)
        with pytest.raises(ValueError, match="no item has a label"):
            feature_robustness(model, without_labels(data), "head", (0.1,), samples=2)


def test_robustness_counts_labelled_items() -> None:
    model, data = tiny_bert(dropout=0.0).double(), classified(8)
    result = feature_robustness(model, [*without_labels(data), *data], "head", (0.5,), samples=2, batch_size=4)
    true = feature_robustness(model, data, "head", (0.5,), samples=2, batch_size=4)
    assert result.num_items == 8 and result.measured == pytest.approx(true.measured, rel=1e-9)
    assert result.predicted == pytest.approx(true.predicted, rel=1e-9)


@pytest.mark.parametrize(
    "config",
    [{"num_labels": 1}, {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}],
)
def test_values_are_not_classes(config: dict[str, Any]) -> None:
    """A temperature of -100 degrees is one."""
    batch = {"labels": torch.tensor([-100, 3])}
    assert item_weights(tiny_bert(**config), batch, 2).tolist() == [1, 1]
    assert item_weights(tiny_bert(), batch, 2).tolist() == [0, 1]
    assert item_weights(tiny_bert(), (torch.zeros(2, 3), batch["labels"]), 2).tolist() == [1, 1]  # which are labels?
    assert item_weights(tiny_bert(), {"labels": torch.tensor([-100.0, 3.0])}, 2).tolist() == [1, 1]


def test_batches_that_are_named_tuples() -> None:
    Named = namedtuple("Named", ["x", "y"])
    moved = to_device(Named(torch.ones(2), [torch.zeros(2)]), torch.device("cpu"))
    assert isinstance(moved, Named) and moved.x.tolist() == [1, 1]
    model, data = mlp(), points(12)
    loader = DataLoader([Named(x, y) for x, y in data], batch_size=5)
    (result,) = measure_relative_flatness(model, loader, "head", loss_fn=lambda m, b: F.cross_entropy(m(b.x), b.y))
    (true,) = measure_relative_flatness(model, data, "head", loss_fn=cross_entropy, batch_size=5)
    assert result.kappa == pytest.approx(true.kappa, rel=1e-12)


def test_texts_of_padding_alone_are_not_counted() -> None:
    model, data = llama(), texts(8)
    (result,) = measure_relative_flatness(model, [*data, {**data[0], "labels": [-100] * 6}], "head", ("trace",))
    assert result.num_items == 8
