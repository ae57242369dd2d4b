"""Weights that are not finite are never saved, and the message names the right cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from hf_fam import FAMCallback, FAMTrainer
from hf_fam.processes.decisions import NonFiniteFlatnessError
from support.tiny import arguments, classified, fam_trainer, hook_count, plain_arguments, tiny_bert


def message_of(action: Callable[[], Any]) -> str:
    with pytest.raises(NonFiniteFlatnessError) as caught:
        action()
    said = str(caught.value)
    assert len(said) < 500 and "\n" not in said
    return said


def saved(path: Path) -> list[Path]:
    return [*path.rglob("*.safetensors")]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_checkpoint(tmp_path: Path, strategy: str) -> None:
    """A finite kappa can have a gradient that is not; the step that takes it is not written into a checkpoint."""
    given = {"max_grad_norm": 0, "save_strategy": strategy, "save_steps": 1, "max_steps": 3}
    trainer = fam_trainer(tmp_path, fam_lambda=1e39, train_dataset=classified(4), **given)
    said = message_of(trainer.train)
    assert "is not finite after step 1, so it is not saved" in said and "fam_lambda=1e+39" in said
    assert "resume" not in said, "there is nothing to resume from"
    assert not saved(tmp_path)


@pytest.mark.parametrize("strength", [0.0, 0.003])
def test_final_model(tmp_path: Path, strength: float) -> None:
    """Of plain training, too."""
    trainer = fam_trainer(tmp_path, tiny_bert(), fam_lambda=strength, learning_rate=3e38, max_steps=1)
    trainer.train()
    assert not all(weight.isfinite().all() for weight in trainer.model.parameters())
    said = message_of(trainer.save_model)
    assert "is not finite after step 1, so it is not saved" in said and "lower the learning rate" in said
    assert ("fam_lambda" in said) == (strength > 0)
    assert not saved(tmp_path)


def test_checkpoint_of_plain_training(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0, learning_rate=3e38, save_strategy="steps", save_steps=2, max_steps=2)
    assert "is not finite after step 2" in message_of(trainer.train)
    assert not saved(tmp_path)


def test_checkpoint_that_exists_is_named(tmp_path: Path) -> None:
    """And one that is not whole is not."""
    trainer = fam_trainer(tmp_path, fam_lambda=0, save_strategy="steps", save_steps=1, max_steps=2)
    trainer.train()
    with torch.no_grad():
        trainer.model.classifier.weight[0, 0] = float("inf")
    said = message_of(lambda: trainer.save_model(str(tmp_path / "final")))
    assert said.endswith("checkpoint-2 is usable: resume with resume_from_checkpoint=True.")
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    assert "checkpoint-1 is usable" in message_of(lambda: trainer.save_model(str(tmp_path / "final")))
    (tmp_path / "checkpoint-1" / "model.safetensors").unlink()
    assert "usable" not in message_of(lambda: trainer.save_model(str(tmp_path / "final")))


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(x).tanh())
        return {"loss": F.mse_loss(logits.squeeze(-1), labels), "logits": logits}


def regression(path: Path, wrong: dict[int, tuple[str, float]], **given: Any) -> FAMTrainer:
    """Four items in a step; some have a wrong number."""
    draw = torch.Generator().manual_seed(4)
    data = [{"x": torch.randn(4, generator=draw), "labels": torch.tensor(float(k))} for k in range(16)]
    for k, (key, value) in wrong.items():
        data[k][key] = data[k][key] * 0 + value
    settings: dict[str, Any] = {"fam_lambda": 0.1, "fam_layer": "head", "train_sampling_strategy": "sequential"}
    return FAMTrainer(model=Regression(), args=arguments(path, **{**settings, **given}), train_dataset=data)


@pytest.mark.parametrize("given", [{}, {"fam_layer": "body", "fam_estimator": "perturbation"}], ids=["head", "body"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 2])
def test_label_is_blamed_and_not_the_learning_rate(
    tmp_path: Path, value: float, step: int, given: dict[str, Any]
) -> None:
    said = message_of(regression(tmp_path, {4 * step: ("labels", value)}, **given).train)
    assert said.startswith(f"a label at step {step} is NaN or infinite: correct the labels")
    assert "learning rate" not in said


def test_nothing_is_blamed_on_steps_that_were_not_taken(tmp_path: Path) -> None:
    said = message_of(regression(tmp_path, {1: ("x", float("nan"))}).train)
    assert "at step 0, before the first optimizer step. Look for NaN in the inputs" in said
    assert "learning rate" not in said


def test_data_are_a_possible_cause_later_on(tmp_path: Path) -> None:
    said = message_of(regression(tmp_path, {8: ("x", float("nan"))}).train)
    assert "at step 2: the training diverged" in said and "the data contain NaN" in said


def test_a_stock_trainer_with_the_callback_does_not_end_with_nan(tmp_path: Path) -> None:
    """Else ``trainer.save_model()`` would follow."""
    args = plain_arguments(tmp_path, learning_rate=1e38, max_grad_norm=0.0, max_steps=3, optim="sgd")
    trainer = Trainer(model=tiny_bert(), args=args, train_dataset=classified(), callbacks=[FAMCallback(0.1)])
    with pytest.raises(FloatingPointError, match="is not finite after step 3, so it is not saved"):
        trainer.train()
    assert hook_count(trainer.model) == 0
