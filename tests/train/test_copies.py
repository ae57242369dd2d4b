"""A trainer can be copied and pickled at all times, and a copy trains like the original."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_fam import FAMCallback, FAMTrainer, RelativeFlatness
from support.gans import points, tiny_critic, tiny_generator, wgan_trainer
from support.tiny import (
    arguments,
    assert_same_weights,
    classified,
    fam_trainer,
    history,
    hook_count,
    plain_arguments,
    set_seeds,
    texts,
    tiny_bert,
    tiny_llama,
    weights,
)

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda original: pickle.loads(pickle.dumps(original)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "closed form": {"fam_lambda": 0.5},
    "centered": {"fam_lambda": 0.5, "fam_center": True},
    "gauss_newton": {"fam_lambda": 0.5, "fam_layer": "representation"},
    "hessian": {"fam_lambda": 0.5, "fam_layer": "bert.encoder.layer.1.output.dense", "fam_estimator": "hessian"},
    "perturbation": {"fam_lambda": 0.5, "fam_estimator": "perturbation"},
    "row probes": {"fam_lambda": 0.5, "fam_estimator": "row_probes"},
    "constant": {"fam_lambda": 0.5, "lr_scheduler_type": "constant"},
    "accumulated": {"fam_lambda": 0.5, "gradient_accumulation_steps": 2},
    "plain": {"fam_lambda": 0.0},
}


def train(trainer: Trainer) -> None:
    set_seeds(3)
    trainer.train()


class StopsInside(TrainerCallback):
    """Ends a training in the middle of its second step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise KeyboardInterrupt


def with_large_head(path: Path) -> FAMTrainer:
    """Its term acts in the backward pass."""
    args = arguments(path, fam_lambda=0.1, max_steps=3)
    return FAMTrainer(model=tiny_llama(vocab_size=4200), args=args, train_dataset=texts())


def assert_copy_trains_alike(trainer: Any, copied: Any) -> None:
    before = weights(trainer.model)
    train(copied)
    assert all(torch.equal(before[name], w) for name, w in weights(trainer.model).items()), "it trained the original"
    train(trainer)
    assert_same_weights(trainer.model, copied.model)
    assert any(not torch.equal(before[name], w) for name, w in weights(trainer.model).items())
    assert history(trainer) == history(copied)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_copy_trains_like_the_original(tmp_path: Path, setting: str, how: str) -> None:
    trainer = fam_trainer(tmp_path, **SETTINGS[setting])
    for _ in ("before training", "after training"):
        copied = COPIES[how](trainer)
        assert_copy_trains_alike(trainer, copied)
        if trainer.fam_args.fam_lambda:
            layer = copied.relative_flatness.layer
            assert layer.module is copied.model.get_submodule(layer.name)
            assert layer.name == trainer.relative_flatness.layer.name


@pytest.mark.parametrize("how", COPIES)
def test_a_large_head(tmp_path: Path, how: str) -> None:
    trainer = with_large_head(tmp_path)
    for _ in range(2):
        assert_copy_trains_alike(trainer, COPIES[how](trainer))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("setting", ["closed form", "hessian", "perturbation"])
def test_an_interrupted_training(tmp_path: Path, setting: str, how: str) -> None:
    """The hooks were removed, but the last step left tensors of its graph."""
    trainer = fam_trainer(tmp_path, callbacks=[StopsInside()], **SETTINGS[setting])
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    trainer.remove_callback(StopsInside)
    assert_copy_trains_alike(trainer, COPIES[how](trainer))


@pytest.mark.parametrize("how", COPIES)
def test_a_stock_trainer_with_the_callback(tmp_path: Path, how: str) -> None:
    """The stock Trainer can be pickled before its training only."""
    args = plain_arguments(tmp_path)
    trainer = Trainer(
        model=tiny_bert(), args=args, train_dataset=classified(), callbacks=[FAMCallback(0.5), StopsInside()]
    )
    copied = COPIES[how](trainer)
    for one in (trainer, copied):
        with pytest.raises(KeyboardInterrupt):  # the term stays on the model
            train(one)
        assert hook_count(one.model) > 0
    assert_same_weights(trainer.model, copied.model)
    if how == "deepcopy":
        other = copy.deepcopy(trainer)
        other.remove_callback(StopsInside)
        train(other)
        assert hook_count(other.model) == 0


@pytest.mark.parametrize("how", COPIES)
def test_a_gan(tmp_path: Path, how: str) -> None:
    trainer = wgan_trainer(tmp_path, tiny_generator(), tiny_critic(), train_dataset=points())
    for _ in range(2):
        assert_copy_trains_alike(trainer, COPIES[how](trainer))


@pytest.mark.parametrize("after", [False, True])
def test_a_pickle_trains_in_another_process(tmp_path: Path, after: bool) -> None:
    """As with the stock Trainer, accelerate must have started there."""
    trainer = fam_trainer(tmp_path, fam_lambda=0.5, fam_layer="representation")
    if after:
        train(trainer)
    (tmp_path / "trainer.pkl").write_bytes(pickle.dumps(trainer))
    program = (
        "import pickle, sys, torch\n"
        "from accelerate import Accelerator\n"
        "from support.tiny import set_seeds\n"
        "Accelerator(cpu=True)\n"
        "trainer = pickle.load(open(sys.argv[1] + '/trainer.pkl', 'rb'))\n"
        "set_seeds(3)\n"
        "trainer.train()\n"
        "torch.save(trainer.model.state_dict(), sys.argv[1] + '/weights.pt')\n"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{program}", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    train(trainer)
    others = torch.load(tmp_path / "weights.pt")
    assert all(torch.equal(w, others[name]) for name, w in weights(trainer.model).items())


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("estimator", ["closed_form", "hessian", "perturbation"])
def test_a_copy_of_the_flatness_after_a_step(how: str, estimator: str) -> None:
    """Hooks and the graph of the last pass exist. The copy belongs to the copied model, not to the original."""
    model, batch = tiny_bert(dropout=0.0), {"input_ids": torch.tensor([[3, 4], [5, 6]]), "labels": torch.tensor([0, 1])}
    flatness = RelativeFlatness(model, estimator=estimator)

    def kappa_and_gradient(model: Any, flatness: RelativeFlatness) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        flatness.seed(1)
        with flatness.capture(0.1):
            loss = model(**batch).loss
        kappa = flatness(loss)
        (loss + 0.1 * kappa).backward(retain_graph=True)
        return float(kappa), model.classifier.weight.grad.clone()

    first = kappa_and_gradient(model, flatness)
    copied_model, copied = COPIES[how]((model, flatness))
    assert copied.layer.module is copied_model.classifier
    value, gradient = kappa_and_gradient(copied_model, copied)
    value_again, gradient_again = kappa_and_gradient(model, flatness)
    assert value == value_again and torch.equal(gradient, gradient_again)
    assert estimator == "perturbation" or value == first[0]
    copied.detach(), flatness.detach()
    assert hook_count(copied_model) == hook_count(model) == 0
