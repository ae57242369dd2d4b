"""FlatnessCallback in a stock Trainer and in a FAMTrainer: metrics, log, card; the training itself is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from hf_fam import FlatnessCallback, measure_relative_flatness
from support.tiny import (
    assert_same_weights,
    classified,
    fam_trainer,
    logged,
    plain_arguments,
    set_seeds,
    tiny_bert,
)

SETTINGS: dict[str, Any] = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}


def stock(folder: Path, *callbacks: TrainerCallback, **given: Any) -> Trainer:
    set_seeds(0)
    data = given.pop("eval_dataset", classified(12))
    args = plain_arguments(folder, **{**SETTINGS, **given})
    return Trainer(tiny_bert(), args, train_dataset=classified(), eval_dataset=data, callbacks=list(callbacks))


def test_values_stand_in_metrics_log_and_card(tmp_path: Path) -> None:
    callback = FlatnessCallback(layers=["head", "representation"], items=8, batch_size=4, probes=3)
    trainer = stock(tmp_path, callback)
    trainer.train()
    assert len(logged(trainer, "eval_kappa")) == 2 and len(logged(trainer, "eval_kappa_bert.pooler.dense")) == 2
    metrics = trainer.evaluate()
    (true, _) = measure_relative_flatness(
        trainer.model, classified(8), ["head", "representation"], ("trace",), batch_size=4, probes=3
    )
    assert metrics["eval_kappa"] == pytest.approx(true.kappa, rel=1e-6)
    assert metrics["eval_kappa_error"] == pytest.approx(true.standard_error, rel=1e-6)
    assert callback.last is not None and callback.last[0].num_items == 8
    trainer.create_model_card()
    assert f"Kappa: {metrics['eval_kappa']:.4f}" in (tmp_path / "README.md").read_text()


def test_the_training_is_the_same_with_dropout_and_shuffling(tmp_path: Path) -> None:
    plain, watched = stock(tmp_path), None
    plain.train()
    watched = stock(tmp_path, FlatnessCallback(layers="representation"))
    watched.train()
    assert_same_weights(plain.model, watched.model)
    assert logged(plain, "loss") == logged(watched, "loss")


def test_in_a_fam_trainer(tmp_path: Path) -> None:
    trainer = fam_trainer(
        tmp_path, eval_dataset=classified(8), callbacks=[FlatnessCallback()], fam_lambda=0.1, **SETTINGS
    )
    trainer.train()
    assert len(logged(trainer, "eval_kappa")) == 2 and logged(trainer, "fam_kappa")
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_best_model_by_flatness_and_several_evaluation_sets(tmp_path: Path) -> None:
    sets = {"one": classified(6), "two": classified(9)}
    trainer = stock(
        tmp_path, FlatnessCallback(), eval_dataset=sets, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_two_kappa", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == min(logged(trainer, "eval_two_kappa"))
    assert len(logged(trainer, "eval_one_kappa")) == 2


def test_loggers_are_told_if_the_trainer_is_given(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Logger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer = stock(tmp_path, Logger())
    trainer.add_callback(FlatnessCallback(trainer=trainer))
    trainer.evaluate()
    assert [entry for entry in seen if "eval_kappa" in entry]


def test_data_of_ones_own_and_iterable_data(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(classified(12))

    few = FlatnessCallback(items=5)
    trainer = stock(tmp_path, few, eval_dataset=Stream())
    trainer.evaluate()
    own = FlatnessCallback(classified(7))
    trainer = stock(tmp_path, own)
    trainer.evaluate()
    assert few.last is not None and own.last is not None
    assert (few.last[0].num_items, own.last[0].num_items) == (5, 7)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="items=0"):
        FlatnessCallback(items=0)
    with pytest.raises(TypeError, match="no argument 'layer'"):
        FlatnessCallback(layer="head")
