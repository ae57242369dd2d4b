"""What FAM must leave alone: plain training, evaluation, prediction, and the loss that is logged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_fam import FAMTrainer
from support.tiny import (
    arguments,
    assert_same_weights,
    classified,
    fam_trainer,
    history,
    logged,
    plain_arguments,
    random_states,
    set_seeds,
    tiny_bert,
)


def assert_both_train_alike(path: Path, fam: dict[str, Any], **given: Any) -> FAMTrainer:
    """Trainer and FAMTrainer with lambda = 0: weights, logs and random states after 20 steps with dropout."""
    given = {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 7, **given}
    states, trainers = [], []
    for kind, args in ((Trainer, plain_arguments(path, **given)), (FAMTrainer, arguments(path, **fam, **given))):
        set_seeds(5)
        trainer = kind(model=tiny_bert(), args=args, train_dataset=classified(), eval_dataset=classified(10))
        trainer.train()
        states.append(random_states())
        trainers.append(trainer)
    assert states[0] == states[1]
    assert_same_weights(trainers[0].model, trainers[1].model)
    assert history(trainers[0]) == history(trainers[1])
    return trainers[1]


@pytest.mark.parametrize("given", [{}, {"fam_estimator": "perturbation"}, {"fam_layer": "representation"}])
def test_without_strength_training_is_the_trainers_bit_for_bit(tmp_path: Path, given: dict[str, Any]) -> None:
    fam = assert_both_train_alike(tmp_path, {"fam_lambda": 0, **given})
    assert len(logged(fam, "grad_norm")) == 20
    assert len(logged(fam, "eval_loss")) == 3
    assert fam.model.config.hidden_dropout_prob > 0


def test_without_strength_accumulation_is_the_trainers_bit_for_bit(tmp_path: Path) -> None:
    """Also where the stock Trainer scales the loss wrongly: "auto" corrects only what FAM acts on."""
    assert_both_train_alike(tmp_path, {"fam_lambda": 0}, gradient_accumulation_steps=2)


@pytest.mark.parametrize(
    "given",
    [
        {"fam_estimator": "closed_form"},
        {"fam_estimator": "perturbation"},
        {"fam_estimator": "gauss_newton", "fam_layer": "bert.encoder.layer.1.output.dense"},
    ],
    ids=lambda given: given["fam_estimator"],
)
def test_evaluation_and_prediction_are_the_trainers_bit_for_bit(tmp_path: Path, given: dict[str, Any]) -> None:
    test = classified(10)
    fam = fam_trainer(tmp_path, fam_lambda=1.0, max_steps=2, eval_dataset=test, **given)
    fam.train()
    plain = Trainer(model=fam.model, args=plain_arguments(tmp_path), eval_dataset=test)
    results = []
    for trainer in (fam, plain):
        set_seeds(5)
        loss, (logits, _, metrics) = trainer.evaluate()["eval_loss"], trainer.predict(test)
        results.append((loss, metrics["test_loss"], logits.tolist(), random_states()))
    assert results[0] == results[1]


def test_loss_in_evaluation_mode_has_no_term_even_where_gradients_are_taken(tmp_path: Path) -> None:
    """Attributions, say, through the Trainer's own compute_loss."""
    trainer = fam_trainer(tmp_path, fam_lambda=100.0, fam_layer="representation")
    trainer.train()
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model.eval()
    found, expected = (
        torch.autograd.grad(loss, model.classifier.weight)[0]
        for loss in (trainer.compute_loss(model, dict(batch)), model(**batch).loss)
    )
    assert torch.equal(found, expected)


def test_evaluation_during_training_leaves_training_alone(tmp_path: Path) -> None:
    """Hooks, seeds and logs of the term do not notice that the model was used in between."""
    trained = []
    for given in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": classified(10)}):
        model = tiny_bert(dropout=0.0)  # data loaders draw a number, so dropout would be another one
        trainer = fam_trainer(tmp_path, model, fam_lambda=0.1, fam_layer="representation", max_steps=4, **given)
        trainer.train()
        trained.append(trainer)
    assert_same_weights(trained[0].model, trained[1].model)
    assert logged(trained[0], "fam_kappa") == logged(trained[1], "fam_kappa")


@pytest.mark.parametrize(
    "given",
    [
        {"fam_estimator": "closed_form"},
        {"fam_estimator": "hessian", "fam_layer": "representation"},
        {"fam_estimator": "gauss_newton", "fam_layer": "representation"},
        {"fam_estimator": "dense"},
    ],
    ids=lambda given: given["fam_estimator"],
)
def test_first_logged_loss_is_the_task_loss_bit_for_bit(tmp_path: Path, given: dict[str, Any]) -> None:
    plain = Trainer(model=tiny_bert(), args=plain_arguments(tmp_path, max_steps=2), train_dataset=classified())
    plain.train()
    fam = fam_trainer(tmp_path, fam_lambda=1.0, max_steps=2, **given)
    fam.train()
    losses, expected = logged(fam, "loss"), logged(plain, "loss")
    assert losses[0] == expected[0]
    assert losses[1] != expected[1]  # the gradient was another one


def test_first_logged_loss_below_layer_norms_is_the_task_loss_to_rounding(tmp_path: Path) -> None:
    """Normalizations above the layer are computed from elementary operations, hence another rounding."""
    plain = Trainer(model=tiny_bert(), args=plain_arguments(tmp_path, max_steps=1), train_dataset=classified())
    plain.train()
    fam = fam_trainer(tmp_path, fam_lambda=1.0, max_steps=1, fam_layer="bert.encoder.layer.1.output.dense")
    fam.train()
    assert logged(fam, "loss")[0] == pytest.approx(logged(plain, "loss")[0], rel=1e-6)


def test_probes_do_not_draw_from_the_random_states_of_training(tmp_path: Path) -> None:
    """With a vanishing strength every random state ends where plain training leaves it."""
    ends = []
    for given in ({"fam_lambda": 0}, {"fam_lambda": 1e-30, "fam_layer": "representation", "fam_probes": 2}):
        set_seeds(5)
        fam_trainer(tmp_path, max_steps=3, **given).train()
        ends.append(random_states())
    assert ends[0] == ends[1]


class Normalized(nn.Module):
    """A classifier with batch normalization, which every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.head(self.layers(input_ids))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("estimator", ["closed_form", "perturbation"])
def test_first_look_leaves_running_statistics_alone(tmp_path: Path, estimator: str) -> None:
    model = Normalized()
    trainer = fam_trainer(tmp_path, model, fam_lambda=0.1, fam_estimator=estimator, gradient_accumulation_steps=2)
    with pytest.warns(UserWarning, match="ignores num_items_in_batch"):
        trainer.train()
    assert model.layers[3].num_batches_tracked == 2 * trainer.state.global_step


def test_first_look_of_the_perturbation_leaves_random_states_alone(tmp_path: Path) -> None:
    ends = []
    for given in ({"fam_lambda": 0}, {"fam_lambda": 1e-30, "fam_estimator": "perturbation"}):
        set_seeds(5)
        trainer = fam_trainer(tmp_path, max_steps=3, compute_loss_func=_loss_that_draws, **given)
        trainer.train()
        ends.append(random_states())
    assert ends[0] == ends[1]


def _loss_that_draws(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Some losses augment with numpy or python randomness."""
    return nn.functional.cross_entropy(outputs.logits, labels) * (1 + 0 * random.random() * np.random.rand())
