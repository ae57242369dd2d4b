"""Trainings on a GPU: plain and resumed ones bit for bit, half precision, compiled models, and losses that are NaN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_fam import FAMCallback
from hf_fam.processes.decisions import NonFiniteFlatnessError
from support.tiny import (
    assert_same_weights,
    classified,
    fam_trainer,
    history,
    largest_difference,
    logged,
    plain_arguments,
    texts,
    tiny_bert,
    tiny_llama,
    weights,
)

REPRESENTATION = {"fam_layer": "representation"}
SETTINGS: dict[str, dict[str, Any]] = {
    "head": {},
    "head, centered": {"fam_center": True},
    "gauss_newton": {**REPRESENTATION, "fam_estimator": "gauss_newton"},
    "hessian": {**REPRESENTATION, "fam_estimator": "hessian"},
    "perturbation": {**REPRESENTATION, "fam_estimator": "perturbation"},
}


@pytest.fixture
def place(device: torch.device) -> dict[str, Any]:
    """Arguments of a training on the device."""
    return {"use_cpu": device.type == "cpu"}


@pytest.fixture
def deterministic(place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {**place, "full_determinism": True}
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bfloat16"])
def test_lambda_of_0_is_plain_training(
    tmp_path: Path, precision: dict[str, Any], deterministic: dict[str, Any]
) -> None:
    given = {**deterministic, **precision}
    plain = Trainer(tiny_bert(), plain_arguments(tmp_path / "plain", **given), train_dataset=classified())
    plain.train()
    fam = fam_trainer(tmp_path / "fam", tiny_bert(), fam_lambda=0.0, **given)
    fam.train()
    assert_same_weights(plain.model, fam.model)
    assert history(plain) == history(fam)


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path, deterministic: dict[str, Any]) -> None:
    given = {**SETTINGS[name], **deterministic, "fam_lambda": 0.5, "max_steps": 6, "save_steps": 3}
    whole = fam_trainer(tmp_path, tiny_bert(), save_strategy="steps", **given)
    whole.train()
    resumed = fam_trainer(tmp_path, tiny_bert(seed=1), save_strategy="steps", **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_weights(whole.model, resumed.model)
    assert history(whole)[:6] == history(resumed)[:6]


@pytest.mark.parametrize("name", [*SETTINGS, "callback", "large head"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(
    name: str, precision: str, tmp_path: Path, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and logs are finite, and kappa is that of float32, roughly; with fp16 the Trainer scales the loss."""
    if precision == "fp16" and place["use_cpu"]:
        pytest.skip("the Trainer has no float16 on a CPU")
    found = []
    for half in ({}, {precision: True}):
        folder = tmp_path / ("half" if half else "single")
        callbacks: list[TrainerCallback] = [FAMCallback(0.01)] if name == "callback" else []
        given: dict[str, Any] = {**place, **half, "max_steps": 8, "callbacks": callbacks, "learning_rate": 1e-4}
        if name == "large head":
            monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
            trainer = fam_trainer(folder, tiny_llama(), train_dataset=texts(), fam_lambda=1e-3, **given)
        else:
            strength = 0.0 if name == "callback" else 0.01
            settings = {**SETTINGS.get(name, {}), "fam_lambda": strength}
            trainer = fam_trainer(folder, tiny_bert(dropout=0.0), **settings, **given)
        trainer.train()
        assert all(p.isfinite().all() for p in trainer.model.parameters())
        found.append(torch.tensor(logged(trainer, "fam_kappa")))
    single, half_precision = found
    assert half_precision.isfinite().all() and len(half_precision) >= len(single) - 3  # steps that the scaler skips
    assert torch.isclose(half_precision.mean(), single.mean(), rtol=0.5)


@pytest.mark.parametrize("kind", ["callback", "perturbation"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_models(kind: str, mode: str, tmp_path: Path, cuda: torch.device) -> None:
    """With CUDA graphs, too: the training is that without compilation, or is refused in a sentence."""
    torch.compiler.reset()
    found = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_mode": mode}):
        model = tiny_bert(dropout=0.0)
        strength = 0.0 if kind == "callback" else 0.02
        layer = {"fam_layer": "representation", "fam_estimator": "perturbation"} if kind == "perturbation" else {}
        trainer = fam_trainer(
            tmp_path / str(len(found)), model, fam_lambda=strength, use_cpu=False, learning_rate=1e-4,
            callbacks=[FAMCallback(0.5)] if kind == "callback" else [], **layer, **compiled,
        )  # fmt: skip
        trainer.train()
        found.append(weights(model))
    assert largest_difference(*found) < 1e-3
    torch.compiler.reset()


class NotANumber(TrainerCallback):
    """Makes the loss NaN in the third step."""

    def __init__(self) -> None:
        self.step = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss = nn.functional.cross_entropy(outputs.logits, labels)
        return loss * torch.where(torch.tensor(self.step == 2, device=loss.device), torch.nan, 1.0)


def test_a_loss_that_is_nan_stops_at_the_next_log(tmp_path: Path, place: dict[str, Any]) -> None:
    """No checkpoint has it."""
    fault = NotANumber()
    trainer = fam_trainer(
        tmp_path, tiny_bert(), callbacks=[fault], compute_loss_func=fault.loss, max_steps=12, logging_steps=4,
        save_strategy="steps", save_steps=1, **place,
    )  # fmt: skip
    with pytest.raises(NonFiniteFlatnessError, match="step 2|after step 3"):
        trainer.train()
    assert trainer.state.global_step <= 4
    for folder in tmp_path.glob("checkpoint-*"):
        assert int(folder.name.split("-")[1]) <= 2
