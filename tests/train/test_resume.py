"""Interrupted and resumed training equals uninterrupted training, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_fam import FAMTrainer, RelativeFlatness
from support.tiny import assert_same_weights, fam_trainer, history, logged, tiny_bert


def focal(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss whose head has no closed form, which the first step finds out."""
    p = outputs.logits.softmax(-1).gather(-1, labels[:, None])
    return ((1 - p) ** 2 * -p.log()).mean()


REPRESENTATION = {"fam_estimator": "gauss_newton", "fam_layer": "representation"}
SETTINGS: dict[str, dict[str, Any]] = {
    "closed_form": {"fam_estimator": "closed_form"},
    "gauss_newton": {**REPRESENTATION, "gradient_accumulation_steps": 2, "fam_loss_scaling": "stock"},
    "corrected_loss_scaling": {**REPRESENTATION, "gradient_accumulation_steps": 2, "fam_loss_scaling": "corrected"},
    "hessian_of_a_block": {"fam_estimator": "hessian", "fam_layer": "bert.encoder.layer.1.output.dense"},
    "perturbation": {"fam_estimator": "perturbation", "fam_layer": "representation"},
    "perturbation_of_a_block": {"fam_estimator": "perturbation", "fam_layer": "bert.encoder.layer.0.output.dense"},
    "warm_up": {**REPRESENTATION, "fam_warmup_steps": 0.9},
    "centered": {**REPRESENTATION, "fam_center": True},
    "centered_perturbation": {"fam_estimator": "perturbation", "fam_layer": "representation", "fam_center": True},
    "centered_with_warm_up": {**REPRESENTATION, "fam_center": True, "fam_warmup_steps": 5},
    "centered_head": {"fam_center": True},
    "default_without_closed_form": {"fam_lambda": None, "compute_loss_func": focal},
    "head_with_warm_up": {"fam_warmup_steps": 4},
}


def run(path: Path, given: dict[str, Any], resume: bool = False) -> FAMTrainer:
    """Six steps, saved after the third, or the last three of them by another trainer on another model."""
    model = tiny_bert(seed=int(resume))
    trainer = fam_trainer(path, model, max_steps=6, save_strategy="steps", save_steps=3, **{"fam_lambda": 0.5, **given})
    trainer.train(resume_from_checkpoint=str(path / "checkpoint-3") if resume else None)
    return trainer


def optimizer_state(trainer: FAMTrainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {f"{k}.{name}": value for k, values in state.items() for name, value in values.items()}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:.*ignores num_items_in_batch", "ignore:The closed form does not hold")
def test_resumed_equals_uninterrupted(tmp_path: Path, setting: str) -> None:
    uninterrupted = run(tmp_path, SETTINGS[setting])
    resumed = run(tmp_path, SETTINGS[setting], resume=True)
    assert_same_weights(uninterrupted.model, resumed.model)
    expected, found = optimizer_state(uninterrupted), optimizer_state(resumed)
    assert expected.keys() == found.keys() and len(found) > 0
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    expected_logs, found_logs = (history(t)[:6] for t in (uninterrupted, resumed))
    assert found_logs == expected_logs
    silent = SETTINGS[setting].get("fam_center", False)  # in the first step, which shows the mean
    assert len(logged(resumed, "fam_kappa")) == 6 - silent


def test_strength_still_rises_where_it_is_resumed(tmp_path: Path) -> None:
    """Else the test above would not need the step."""
    rising = logged(run(tmp_path, SETTINGS["warm_up"]), "fam_lambda")
    assert rising == sorted(rising) and len(set(rising)) == 6


def test_mean_of_another_layer_is_not_taken_up(tmp_path: Path) -> None:
    """Both layers read 16 numbers, so nothing else would tell."""
    run(tmp_path, SETTINGS["centered"])
    resumed = run(tmp_path, {"fam_layer": "head", "fam_center": True}, resume=True)
    assert len(logged(resumed, "fam_kappa")) == 3 + 2 - 1  # three of the first, then one step that shows the mean


def test_running_mean_is_in_the_trainer_state_file(tmp_path: Path) -> None:
    """Without it, the first step after the resumption only shows the mean."""
    run(tmp_path, SETTINGS["centered"])
    file = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text())
    (saved,) = [v["mean"] for v in state["stateful_callbacks"].values() if "mean" in v]
    assert saved["layer"] == "bert.pooler.dense"
    state["stateful_callbacks"].pop("FAM")
    file.write_text(json.dumps(state))
    resumed = run(tmp_path, SETTINGS["centered"], resume=True)
    assert len(logged(resumed, "fam_kappa")) == 2 + 2


@pytest.mark.parametrize("given", [{}, {"gradient_accumulation_steps": 3}], ids=["steps", "micro_batches"])
@pytest.mark.filterwarnings("ignore:.*ignores num_items_in_batch")
def test_probes_are_a_function_of_seed_step_and_micro_batch(
    tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At equal weights and data every one of them draws anew, and another seed draws otherwise."""
    data = [{"input_ids": [3, 4, 5, 6], "labels": 1}] * 24
    kappas, drawn, estimate = [], [], RelativeFlatness.__call__

    def noting(flatness: RelativeFlatness, loss: torch.Tensor) -> torch.Tensor:
        kappa = estimate(flatness, loss)
        drawn.append(float(kappa.detach()))
        return kappa

    monkeypatch.setattr(RelativeFlatness, "__call__", noting)
    for seed in (1, 1, 2):
        model = tiny_bert(dropout=0.0)
        trainer = fam_trainer(
            tmp_path, model, train_dataset=data, learning_rate=0.0, max_steps=2, seed=seed, **REPRESENTATION, **given
        )
        drawn.clear()
        trainer.train()
        kappas.append([*drawn])
    assert kappas[0] == kappas[1]
    assert len(set(kappas[0] + kappas[2])) == 2 * len(kappas[0]) == 4 * given.get("gradient_accumulation_steps", 1)


def assert_trains_like(trainer: FAMTrainer, fresh: FAMTrainer) -> None:
    """Both train from the same random state to the same weights and the same log."""
    for t in (trainer, fresh):
        torch.manual_seed(3)
        t.train()
    assert_same_weights(trainer.model, fresh.model)
    assert history(trainer) == history(fresh)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.filterwarnings("ignore:.*ignores num_items_in_batch")
def test_same_trainer_trains_again_as_a_new_one_does(tmp_path: Path, parts: int) -> None:
    """Nothing of the first training is left, no logs of the term, mean or numbers of probes, and nothing is missing."""
    given = {**REPRESENTATION, "fam_lambda": 0.5, "fam_center": True, "fam_warmup_steps": 2}
    given |= {"logging_steps": 2, "max_steps": 3, "gradient_accumulation_steps": parts}
    trainer, fresh = fam_trainer(tmp_path, **given), fam_trainer(tmp_path, **given)
    trainer.train()
    trainer.model.load_state_dict(fresh.model.state_dict())
    trainer.optimizer = trainer.lr_scheduler = None
    assert_trains_like(trainer, fresh)


def test_training_again_after_an_exception_is_as_if_nothing_had_been(tmp_path: Path) -> None:
    """The probes of a step that was broken off are drawn again."""
    given = {**REPRESENTATION, "fam_lambda": 0.5, "max_steps": 2}
    trainer, fresh = fam_trainer(tmp_path, **given), fam_trainer(tmp_path, **given)
    backward = trainer.accelerator.backward
    trainer.accelerator.backward = _fail
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.accelerator.backward = backward
    assert_trains_like(trainer, fresh)


def _fail(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:.*ignores num_items_in_batch")
def test_plain_training_after_corrected_training_is_plain(tmp_path: Path) -> None:
    """A search over lambda compares like with like: lambda = 0 is the Trainer's own training in every trial."""
    given = {"gradient_accumulation_steps": 2, "max_steps": 2}
    trainer, fresh = fam_trainer(tmp_path, fam_lambda=0.1, **given), fam_trainer(tmp_path, fam_lambda=0, **given)
    trainer.train()
    trainer.args.fam_lambda = 0
    trainer.model.load_state_dict(fresh.model.state_dict())
    trainer.optimizer = trainer.lr_scheduler = None
    assert_trains_like(trainer, fresh)


def test_training_with_a_batch_size_that_was_found_is_as_if_it_had_been_given(tmp_path: Path) -> None:
    """The batch that did not fit left nothing behind."""
    given = {**REPRESENTATION, "fam_lambda": 0.5, "max_steps": 2}
    found = fam_trainer(
        tmp_path, tiny_bert(dropout=0.0), auto_find_batch_size=True, per_device_train_batch_size=4, **given
    )
    backward, calls = found.accelerator.backward, []

    def too_large_at_first(loss: torch.Tensor, **kwargs: Any) -> None:
        calls.append(loss)
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory.")
        backward(loss, **kwargs)

    found.accelerator.backward = too_large_at_first
    found.train()
    size = found.state.train_batch_size
    assert size < 4 and len(calls) == 3
    fresh = fam_trainer(tmp_path, tiny_bert(dropout=0.0), per_device_train_batch_size=size, **given)
    fresh.train()
    assert logged(found, "fam_kappa") == logged(fresh, "fam_kappa")
