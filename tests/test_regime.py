"""What "auto" stands for, and the defaults that go with it, follow from what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from hf_fam.regime import Regime, find_regime
from hf_fam.strength import FROZEN_TRUNK_LAMBDA
from support.tiny import fam_trainer, logged, tiny_bert

HEAD = Regime("head", frozen_trunk=False)
FROZEN = Regime("representation", frozen_trunk=True)


def frozen_bert(*parts: str) -> nn.Module:
    model = tiny_bert()
    for name in parts:
        model.get_submodule(name).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "parts, regime",
    [
        ([], HEAD),
        (["bert.embeddings"], HEAD),
        (["bert.embeddings", "bert.encoder.layer.0"], HEAD),
        (["bert.embeddings", "bert.encoder"], FROZEN),
        (["bert"], HEAD),  # with the pooler: the head alone is trained
        (["bert.embeddings", "bert.encoder", "classifier"], FROZEN),
        (["classifier"], HEAD),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value.layer,
)
def test_auto_is_the_representation_on_a_frozen_trunk(parts: list[str], regime: Regime) -> None:
    assert find_regime(frozen_bert(*parts), "auto", "auto") == regime


def test_base_model_of_a_model_with_its_own_dense_layer() -> None:
    """The usual way to freeze: RoBERTa's dense layer belongs to the head, BERT's pooler to the base."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=50, **sizes))
    model.base_model.requires_grad_(False)
    assert find_regime(model, "auto", "auto") == FROZEN


@pytest.mark.parametrize("estimator", ["hessian", "perturbation", "closed_form", "dense"])
def test_only_what_was_tried_has_the_defaults_of_a_frozen_trunk(estimator: str) -> None:
    model = frozen_bert("bert.embeddings", "bert.encoder")
    assert find_regime(model, "auto", estimator) == HEAD
    assert find_regime(model, "representation", estimator) == Regime("representation", frozen_trunk=False)


def test_layer_that_was_given() -> None:
    model = frozen_bert("bert.embeddings", "bert.encoder")
    for name in ("representation", "bert.pooler.dense"):
        assert find_regime(model, name, "auto") == Regime(name, frozen_trunk=True)
    assert find_regime(model, "classifier", "auto") == Regime("classifier", frozen_trunk=False)
    assert find_regime(model, "bert.encoder.layer.1.output.dense", "auto").frozen_trunk is False


def test_network_without_a_trunk_keeps_the_head() -> None:
    assert find_regime(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "auto", "auto") == HEAD
    assert find_regime(nn.Linear(3, 2), "auto", "auto") == HEAD


@pytest.mark.parametrize(
    "parts, given, layer, strength, centred",
    [
        ([], {}, "classifier", 0.001, False),
        (["bert.embeddings", "bert.encoder"], {}, "bert.pooler.dense", FROZEN_TRUNK_LAMBDA, True),
        (["bert.embeddings", "bert.encoder"], {"fam_lambda": 0.5}, "bert.pooler.dense", 0.5, True),
        (["bert.embeddings", "bert.encoder"], {"fam_center": False}, "bert.pooler.dense", 0.001, False),
        (["bert.embeddings", "bert.encoder"], {"fam_layer": "head"}, "classifier", 0.001, False),
        ([], {"fam_layer": "representation", "fam_center": True}, "bert.pooler.dense", 0.001, True),
    ],
)
def test_trainer_takes_the_defaults(
    tmp_path: Path, parts: list[str], given: dict[str, Any], layer: str, strength: float, centred: bool
) -> None:
    trainer = fam_trainer(tmp_path, frozen_bert(*parts), max_steps=3, **given)
    trainer.train()
    flatness = trainer.relative_flatness
    assert (flatness.layer.name, flatness.mean is not None) == (layer, centred)
    assert logged(trainer, "fam_lambda") == [strength] * (3 - centred)


def test_parts_that_are_frozen_after_the_trainer_was_made(tmp_path: Path) -> None:
    model = frozen_bert()
    trainer = fam_trainer(tmp_path, model, max_steps=2)
    assert trainer.relative_flatness.layer.name == "classifier"
    for name in ("embeddings", "encoder"):
        model.bert.get_submodule(name).requires_grad_(False)
    trainer.train()
    assert trainer.relative_flatness.layer.name == "bert.pooler.dense"
    model.requires_grad_(True)
    trainer.train()
    assert trainer.relative_flatness.layer.name == "classifier" and trainer.relative_flatness.mean is None


def test_second_training_begins_with_a_mean_of_its_own(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, frozen_bert("bert.embeddings", "bert.encoder"), max_steps=2)
    for _ in range(2):
        trainer.train()
        assert len(logged(trainer, "fam_kappa")) == 1
