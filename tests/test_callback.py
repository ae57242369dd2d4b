"""FAMCallback in the stock Trainer: the steps of FAMTrainer, its log, warm-up, resumption, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_fam import FAMCallback
from support.tiny import (
    assert_same_weights,
    classified,
    fam_trainer,
    hook_count,
    logged,
    plain_arguments,
    set_seeds,
    texts,
    tiny_bert,
    tiny_llama,
    weights,
)


def trainer_with(callback: FAMCallback | None, path: Path, model: nn.Module | None = None, **given: Any) -> Trainer:
    data = given.pop("train_dataset", classified())
    arguments = plain_arguments(path, **{"seed": 3, **given})
    callbacks = [] if callback is None else [callback]
    model = tiny_bert() if model is None else model
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=classified(8), callbacks=callbacks)


@pytest.mark.parametrize("given", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=["", "parts", "bf16"])
def test_takes_the_steps_of_fam_trainer_and_logs_what_it_logs(tmp_path: Path, given: dict[str, Any]) -> None:
    given = {"train_dataset": texts(), "seed": 3, "max_steps": 3, "fam_warmup_steps": 2, **given}
    fam = fam_trainer(tmp_path, tiny_llama(), fam_lambda=0.5, **given)
    callback = FAMCallback(0.5, fam_warmup_steps=given.pop("fam_warmup_steps"))
    other = trainer_with(callback, tmp_path, tiny_llama(), **given)
    for trainer in (fam, other):
        set_seeds(1)
        trainer.train()
    precision = 2e-2 if "bf16" in given else 1e-4
    for name in ("loss", "fam_kappa", "fam_term", "fam_lambda", "fam_delta"):
        assert logged(other, name) == pytest.approx(logged(fam, name), rel=precision)
    assert logged(other, "fam_lambda") == [0.25, 0.5, 0.5]
    for name, weight in weights(fam.model).items():
        torch.testing.assert_close(weights(other.model)[name], weight, rtol=precision, atol=precision)


def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    ends = []
    for resume in (None, True):
        trainer = trainer_with(FAMCallback(0.5, fam_warmup_steps=4), tmp_path, **given)
        if resume:
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        else:
            trainer.train()
        ends.append(trainer)
    assert_same_weights(ends[0].model, ends[1].model)
    assert logged(ends[1], "fam_lambda") == [0.125, 0.25, 0.375, 0.5]
    assert logged(ends[0], "fam_kappa") == logged(ends[1], "fam_kappa")


def test_without_strength_it_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    ends = []
    for callback in (None, FAMCallback(0.0)):
        set_seeds(1)
        trainer = trainer_with(callback, tmp_path)
        trainer.train()
        ends.append(trainer)
    assert_same_weights(ends[0].model, ends[1].model)
    assert logged(ends[1], "fam_kappa") == []


def test_evaluation_is_untouched_and_the_model_left_as_it_was(tmp_path: Path) -> None:
    trainer = trainer_with(FAMCallback(0.5), tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert hook_count(trainer.model) == 0
    assert not any("fam_kappa" in entry for entry in trainer.state.log_history if "eval_loss" in entry)
    stock = trainer_with(None, tmp_path, trainer.model)
    assert trainer.evaluate()["eval_loss"] == stock.evaluate()["eval_loss"]
    assert logged(trainer, "eval_loss")[-1] == stock.evaluate()["eval_loss"]


def test_the_term_is_not_added_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FAMCallback would add it again"):
        fam_trainer(tmp_path, fam_lambda=0.1, callbacks=[FAMCallback(0.1)]).train()
    fam_trainer(tmp_path, fam_lambda=0.0, callbacks=[FAMCallback(0.1)]).train()


def test_two_callbacks_in_one_training_are_refused(tmp_path: Path) -> None:
    trainer = trainer_with(FAMCallback(0.1), tmp_path)
    trainer.add_callback(FAMCallback(0.2))
    with pytest.raises(ValueError, match="two FAMCallbacks add the flatness term of 'classifier' in one training"):
        trainer.train()


def test_hidden_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='layer="representation" makes no logits'):
        trainer_with(FAMCallback(0.1, "representation"), tmp_path).train()


class BreakOff(TrainerCallback):
    """As Ctrl-C does."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_a_training_that_was_broken_off_can_be_begun_again(tmp_path: Path) -> None:
    model, fresh = tiny_bert(), tiny_bert()
    broken = trainer_with(FAMCallback(0.5), tmp_path, model)
    broken.add_callback(BreakOff())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    model.load_state_dict(fresh.state_dict())
    kappas = []
    for trainer in (trainer_with(FAMCallback(0.5), tmp_path, m) for m in (model, fresh)):
        set_seeds(1)
        trainer.train()
        kappas.append(logged(trainer, "fam_kappa"))
    assert kappas[0] == kappas[1]
    assert hook_count(model) == 0


def test_serves_several_trainings(tmp_path: Path) -> None:
    callback = FAMCallback(0.5)
    trainer = trainer_with(callback, tmp_path)
    trainer.train()
    first = logged(trainer, "fam_kappa")
    again = trainer_with(callback, tmp_path)
    again.train()
    assert logged(again, "fam_kappa") == first


class PastTheHead(nn.Module):
    """Computes its logits from the head's weight, as fused losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.embeddings(input_ids).mean(1) @ self.head.weight.T
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_term_that_does_not_act_stops_the_training_before_the_first_step(tmp_path: Path) -> None:
    trainer = trainer_with(FAMCallback(0.5), tmp_path, PastTheHead())
    before = weights(trainer.model)
    with pytest.raises(RuntimeError, match="No backward pass has gone through the flatness term at 'head'"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer.model).items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fam_lambda": -1.0}, r"fam_lambda=-1\.0: give a finite strength of at least 0"),
        ({"fam_lambda": float("nan")}, "fam_lambda=nan"),
        ({"fam_lambda": "0.01"}, "fam_lambda='0.01': give a finite strength"),
        ({"fam_warmup_steps": None}, "fam_warmup_steps=None"),
        ({"fam_warmup_steps": -0.5}, r"fam_warmup_steps=-0\.5: give steps, or a fraction below 1"),
    ],
)
def test_bad_values_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMCallback(**given)


def test_unknown_layer_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'classifier'"):
        trainer_with(FAMCallback(fam_layer="clasifier"), tmp_path).train()


def test_skipped_half_precision_steps_are_left_out_of_the_log(tmp_path: Path) -> None:
    """A step whose gradients overflowed has no kappa."""
    callback = FAMCallback(0.5)
    trainer = trainer_with(callback, tmp_path, max_steps=2, logging_steps=2)

    note = callback.on_pre_optimizer_step

    def overflow(*args: Any, **kwargs: Any) -> None:
        note(*args, **kwargs)
        if len(callback._kappas) == 1:
            callback._kappas[0] = callback._kappas[0] * float("inf")

    callback.on_pre_optimizer_step = overflow  # type: ignore[method-assign]
    trainer.train()
    (kappa,) = logged(trainer, "fam_kappa")
    assert 0 < kappa < float("inf")
