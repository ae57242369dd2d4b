"""sentence-transformers: losses that couple the batch, heads that belong to the loss, cross-encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder import losses as cross_losses

from hf_fam import FAMArguments, FAMCallback, FAMMixin
from support.languages import pairs, saved, tiny_embedder
from support.others import assert_unbiased, draws, logged
from support.tiny import PLAIN, assert_same_weights, hook_count, tiny_bert

HIDDEN = "0.model.encoder.layer.1.output.dense"


class FAMSentenceTransformerTrainer(FAMMixin, SentenceTransformerTrainer):
    """What the documentation tells users to write."""


class FAMCrossEncoderTrainer(FAMMixin, CrossEncoderTrainer):
    """What the documentation tells users to write."""


CLASSES = {"a": pairs()["anchor"], "b": pairs()["positive"], "label": [n % 3 for n in range(12)]}


def ranking(path: Path, kind: type, fam: dict[str, Any] | None = None, loss: Any = None) -> Any:
    """A trainer on pairs, by default with in-batch negatives."""
    model, data = tiny_embedder(path), Dataset.from_dict(pairs())
    loss = (loss or losses.MultipleNegativesRankingLoss)(model)
    arguments = SentenceTransformerTrainingArguments(output_dir=str(path), **{**PLAIN, "max_steps": 2})
    own = {} if fam is None else {"fam_args": FAMArguments(**fam)}
    return kind(model=model, args=arguments, train_dataset=data, eval_dataset=data, loss=loss, **own)


def classifying(path: Path, kind: type, callbacks: Any = (), **own: Any) -> Any:
    """A trainer on pairs of three classes; the head belongs to the loss."""
    model, data = tiny_embedder(path), Dataset.from_dict(CLASSES)
    loss = losses.SoftmaxLoss(model, 8, 3)
    arguments = SentenceTransformerTrainingArguments(output_dir=str(path), **{**PLAIN, "max_steps": 2})
    nn.init.trunc_normal_(loss.classifier.weight, generator=None, std=0.3)
    return kind(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, loss=loss, callbacks=[*callbacks], **own
    )


def test_ranking_loss_with_a_hidden_layer(tmp_path: Path) -> None:
    given = {"fam_layer": HIDDEN, "fam_estimator": "hessian"}
    plain = ranking(tmp_path, SentenceTransformerTrainer)
    off = ranking(tmp_path, FAMSentenceTransformerTrainer, {**given, "fam_lambda": 0.0})
    on = ranking(tmp_path, FAMSentenceTransformerTrainer, {**given, "fam_lambda": 0.1})
    for trainer in (plain, off, on):
        trainer.train()
    assert_same_weights(plain.model, off.model)
    assert on.relative_flatness.method.coupling_finder.coupling.value == "batch"
    assert logged(on, "loss")[0] == pytest.approx(logged(plain, "loss")[0], rel=1e-4)
    assert logged(on, "loss")[1] != logged(plain, "loss")[1]
    assert hook_count(on.model) == 0
    assert on.model.encode(["w1 w2"]).shape == (1, 8)
    stock = SentenceTransformerTrainer(
        model=on.model, args=on.args, eval_dataset=on.eval_dataset, loss=losses.MultipleNegativesRankingLoss(on.model)
    )
    assert on.evaluate()["eval_loss"] == stock.evaluate()["eval_loss"]


def test_probes_see_that_the_batch_is_coupled(tmp_path: Path) -> None:
    trainer = ranking(tmp_path, FAMSentenceTransformerTrainer, {"fam_lambda": 0.0})
    assert_unbiased(trainer, trainer.model, HIDDEN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "'0.model.pooler.dense' is called, but its output does not reach the loss"),
        (
            {"fam_layer": HIDDEN},
            "takes '0.model.pooler.dense' for the layer into the logits, but it .* use \"hessian\"",
        ),
    ],
    ids=["auto", "gauss_newton"],
)
def test_a_loss_without_logits_is_refused_with_a_remedy(tmp_path: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking(tmp_path, FAMSentenceTransformerTrainer, {"fam_lambda": 0.1, **given}).train()


def test_a_loss_that_caches_gradients_is_refused(tmp_path: Path) -> None:
    given = {"fam_layer": HIDDEN, "fam_estimator": "hessian", "fam_lambda": 0.1}
    trainer = ranking(tmp_path, FAMSentenceTransformerTrainer, given, losses.CachedMultipleNegativesRankingLoss)
    with pytest.raises(RuntimeError, match=r"Cached\.\.\. ones\) hide the graph, too: use the plain one"):
        trainer.train()


def test_the_head_of_a_softmax_loss(tmp_path: Path) -> None:
    """It belongs to the loss, not to the model."""
    fam = classifying(tmp_path, FAMSentenceTransformerTrainer, fam_args=FAMArguments(fam_lambda=0.1))
    assert fam.relative_flatness.layer.name == "classifier"
    off = classifying(tmp_path, FAMSentenceTransformerTrainer, fam_args=FAMArguments(fam_lambda=0.0))
    exact, dense = (draws(off, off.loss, "classifier", way).item() for way in ("closed_form", "dense"))
    assert exact == pytest.approx(dense, rel=1e-4)
    callback = FAMCallback(0.1)
    other = classifying(tmp_path, SentenceTransformerTrainer, [callback])
    other.loss.load_state_dict(fam.loss.state_dict())
    callback.fam_layer = other.loss.classifier
    for trainer in (fam, other):
        trainer.train()
    assert logged(other, "fam_kappa") == pytest.approx(logged(fam, "fam_kappa"), rel=1e-4)
    assert logged(other, "loss") == pytest.approx(logged(fam, "loss"), rel=1e-5)


def cross_encoding(path: Path, kind: type, labels: int, callbacks: Any = (), **own: Any) -> Any:
    model = CrossEncoder(saved(path / "model", tiny_bert(dropout=0.0, num_labels=labels)), device="cpu")
    data = Dataset.from_dict(CLASSES if labels > 1 else {**CLASSES, "label": [float(n % 2) for n in range(12)]})
    loss = (cross_losses.CrossEntropyLoss if labels > 1 else cross_losses.BinaryCrossEntropyLoss)(model)
    arguments = CrossEncoderTrainingArguments(output_dir=str(path), **{**PLAIN, "max_steps": 2})
    return kind(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, loss=loss, callbacks=[*callbacks], **own
    )


@pytest.mark.parametrize("labels", [1, 3])
def test_cross_encoder(tmp_path: Path, labels: int) -> None:
    plain = cross_encoding(tmp_path, CrossEncoderTrainer, labels)
    off = cross_encoding(tmp_path, FAMCrossEncoderTrainer, labels, fam_args=FAMArguments(fam_lambda=0.0))
    on = cross_encoding(tmp_path, FAMCrossEncoderTrainer, labels, fam_args=FAMArguments(fam_lambda=1.0))
    exact, dense = (draws(off, off.model, "0.model.classifier", way).item() for way in ("closed_form", "dense"))
    assert exact == pytest.approx(dense, rel=1e-4)
    for trainer in (plain, off, on):
        trainer.train()
    assert_same_weights(plain.model, off.model)
    assert on.relative_flatness.estimator == "closed_form"
    assert logged(on, "loss")[0] == logged(plain, "loss")[0]
    assert logged(on, "loss")[1] != logged(plain, "loss")[1]


def test_cross_encoder_with_the_callback(tmp_path: Path) -> None:
    fam = cross_encoding(tmp_path, FAMCrossEncoderTrainer, 3, fam_args=FAMArguments(fam_lambda=1.0))
    other = cross_encoding(tmp_path, CrossEncoderTrainer, 3, [FAMCallback(1.0)])
    for trainer in (fam, other):
        trainer.train()
    assert logged(other, "fam_kappa") == pytest.approx(logged(fam, "fam_kappa"), rel=1e-4)
