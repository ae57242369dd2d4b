"""FAMCallback in the stock Trainer: the steps of FAMTrainer, its log, warm-up, resumption, evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

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


@pytest.mark.parametrize(
    "given",
    [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}, {"fam_smoothing": 0.1}],
    ids=["", "parts", "bf16", "smoothed"],
)
def test_takes_the_steps_of_fam_trainer_and_logs_what_it_logs(tmp_path: Path, given: dict[str, Any]) -> None:
    given = {"train_dataset": texts(), "seed": 3, "max_steps": 3, "fam_warmup_steps": 2, **given}
    fam = fam_trainer(tmp_path, tiny_llama(), fam_lambda=0.5, **given)
    callback = FAMCallback(
        0.5, fam_warmup_steps=given.pop("fam_warmup_steps"), fam_smoothing=given.pop("fam_smoothing", 0.0)
    )
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


class SometimesPastTheHead(nn.Module):
    """Two tasks: every second batch goes to another head."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.other, self.head = nn.Embedding(50, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.batches = 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.batches += 1
        logits = (self.head if self.batches % 2 else self.other)(self.embeddings(input_ids).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_step_past_the_head_has_no_kappa_and_is_logged_like_any(tmp_path: Path) -> None:
    """Else one process of several would have nothing to exchange, and the others would wait for it."""
    trainer = trainer_with(FAMCallback(0.5, "head"), tmp_path, SometimesPastTheHead())
    trainer.train()
    kappas = logged(trainer, "fam_kappa")
    assert len(kappas) == 4 and kappas[1] == kappas[3] == 0 < min(kappas[0], kappas[2])


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
        ({"fam_lambda": -1.0}, r"fam_lambda=-1\.0: give a number of at least 0"),
        ({"fam_lambda": float("nan")}, "fam_lambda=nan"),
        ({"fam_lambda": "strong"}, "fam_lambda='strong': give a number of at least 0"),
        ({"fam_warmup_steps": None}, "fam_warmup_steps=None"),
        ({"fam_warmup_steps": -0.5}, r"fam_warmup_steps=-0\.5: give a number of at least 0: steps"),
    ],
)
def test_bad_values_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMCallback(**given)


def test_numbers_may_be_given_as_yaml_gives_them() -> None:
    """As in FAMArguments: YAML reads 1e-3 as a string."""
    callback = FAMCallback("1e-3", fam_warmup_steps="4")  # type: ignore[arg-type]
    assert (callback.fam_lambda, callback.fam_warmup_steps) == (0.001, 4.0)


def test_unknown_layer_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'classifier'"):
        trainer_with(FAMCallback(fam_layer="clasifier"), tmp_path).train()


def test_skipped_half_precision_steps_are_left_out_of_the_log(tmp_path: Path) -> None:
    """A step whose gradients overflowed has no kappa."""
    callback = FAMCallback(0.5)
    trainer = trainer_with(callback, tmp_path, max_steps=2, logging_steps=2)
    note, overflowed = callback.on_pre_optimizer_step, SimpleNamespace(scale=torch.zeros_like)

    def overflow(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            kwargs["optimizer"] = SimpleNamespace(scaler=overflowed)
        note(args, state, control, **kwargs)

    callback.on_pre_optimizer_step = overflow  # type: ignore[method-assign]
    trainer.train()
    (kappa,) = logged(trainer, "fam_kappa")
    assert 0 < kappa < float("inf")


def test_strength_by_default_is_the_documented_one(tmp_path: Path) -> None:
    trainer = trainer_with(FAMCallback(), tmp_path, max_steps=2)
    trainer.train()
    assert logged(trainer, "fam_lambda") == [0.003, 0.003]


def test_split_models_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = FAMCallback(0.5)
    args, model = plain_arguments(tmp_path), tiny_bert()
    monkeypatch.setattr(type(args), "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs in one process"):
        callback.on_train_begin(args, TrainerState(), TrainerControl(), model=model)
    assert hook_count(model) == 0


def test_scale_of_a_gradient_scaler_is_taken_out_of_kappa(tmp_path: Path) -> None:
    """What backward was called on is 1024 times the loss, so kappa arrives 1024 times too large."""
    args, control, model = plain_arguments(tmp_path), TrainerControl(), tiny_bert(dropout=0.0).double()
    batch = {name: torch.tensor([item[name] for item in classified(6)]) for name in ("input_ids", "labels")}
    scaled = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    kappas = []
    for scale, optimizer in ((1.0, SimpleNamespace()), (1024.0, scaled)):
        callback, state, logs = FAMCallback(0.5), TrainerState(log_history=[{}]), {"loss": 1.0}
        callback.on_train_begin(args, state, control, model=model)
        (scale * model(**batch).loss).backward()
        callback.on_pre_optimizer_step(args, state, control, optimizer=optimizer)
        callback.on_log(args, state, control, logs=logs)
        callback.on_train_end(args, state, control)
        kappas.append(logs["fam_kappa"])
        assert logs["fam_kappa"] == state.log_history[-1]["fam_kappa"]
    assert kappas[0] > 0
    assert kappas[1] == kappas[0]
