"""An estimator that is defined here, and nowhere else, is one like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig

from hf_fam import RelativeFlatness
from hf_fam.cli.main import main
from hf_fam.flatness.batch import Batch
from hf_fam.flatness.estimators import (
    ActsIn,
    Estimator,
    Operations,
    default_lambda,
    estimator_names,
    estimators,
    register,
    unregister,
)
from hf_fam.flatness.estimators.table import estimator_table
from hf_fam.layer.feature_layer import FeatureLayer
from support.tiny import fam_trainer, tiny_bert

STRENGTH, COST = 0.25, 0.125


class WeightNorm(Estimator):
    """The squared norm of the weight, known by hand."""

    name = "weight_norm"
    default_strength = STRENGTH
    tail_derivatives = 1
    can_center = False

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        return layer is head

    def relative_cost(self, operations: Operations) -> float:
        return COST

    def __call__(self, batch: Batch) -> Tensor:
        return batch.weight.square().sum()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(WeightNorm)
    yield
    unregister(WeightNorm.name)
    assert WeightNorm.name not in estimator_names()


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="an estimator called 'weight_norm' exists already"):
        register(WeightNorm)


def test_what_is_missing_is_named() -> None:
    class Nameless(WeightNorm):
        pass

    del WeightNorm.default_strength
    try:
        with pytest.raises(ValueError, match="estimator Nameless lacks default_strength: set it as a class attribute"):
            register(Nameless)
    finally:
        WeightNorm.default_strength = STRENGTH


def test_relative_flatness() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    flatness = RelativeFlatness(model, estimator="weight_norm")
    with flatness.capture():
        loss = F.cross_entropy(model(torch.randn(5, 3).double()), torch.tensor([0, 1, 0, 1, 1]))
    kappa = flatness(loss)
    kappa.backward()
    assert kappa.item() == pytest.approx(model[2].weight.square().sum().item())
    torch.testing.assert_close(model[2].weight.grad, 2 * model[2].weight.detach())
    assert flatness.estimator == "weight_norm" and flatness.default_strength == STRENGTH
    assert flatness.method.acts_in is ActsIn.LOSS
    assert RelativeFlatness(model).estimator == "weight_norm"  # it wants the head
    assert RelativeFlatness(model, "0").estimator == "gauss_newton"
    with pytest.raises(ValueError, match='center=True .* is not possible with estimator="weight_norm"'):
        RelativeFlatness(model, estimator="weight_norm", center=True)


def test_trainer(tmp_path: Path) -> None:
    """The default strength is the estimator's, and one step of SGD moves the head by the term's gradient."""
    options = {"max_steps": 1, "learning_rate": 0.5, "optim": "sgd", "logging_steps": 1, "max_grad_norm": 1e9}
    heads, kappas = [], []
    for strength in (None, 0.0):
        model = tiny_bert(dropout=0.0)
        before = model.classifier.weight.detach().clone()
        trainer = fam_trainer(tmp_path, model, fam_estimator="weight_norm", fam_lambda=strength, **options)
        trainer.train()
        heads.append(model.classifier.weight.detach())
        kappas += [entry["fam_kappa"] for entry in trainer.state.log_history if "fam_kappa" in entry]
    assert kappas == [pytest.approx(before.square().sum().item(), rel=1e-5)]
    torch.testing.assert_close(heads[0] - heads[1], -0.5 * STRENGTH * 2 * before)
    assert default_lambda("weight_norm", 3) == STRENGTH


def test_layers_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert main(["layers", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert (rows["classifier"]["estimator"], rows["classifier"]["cost"]) == ("weight_norm", COST)
    assert rows["bert.pooler.dense"]["estimator"] == "gauss_newton"


def test_table_of_the_documentation() -> None:
    lines = estimator_table().splitlines()
    row = "| `weight_norm` | The squared norm of the weight, known by hand | the loss | 1 | 0.25 | - | no | no |"
    assert lines[-1] == row
    page = Path(__file__).parents[2] / "docs" / "generated" / "estimators.md"
    shipped = [kind for kind in estimators() if kind is not WeightNorm]
    assert page.read_text(encoding="utf-8") == estimator_table(shipped), "run `make tables`"
