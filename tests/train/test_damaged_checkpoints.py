"""Damaged or incomplete checkpoints: passed over, refused or warned of by name, never taken up in silence."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_fam import FAMTrainer
from support.tiny import assert_same_weights, fam_trainer, logged, tiny_bert

CENTERED = {"fam_layer": "representation", "fam_estimator": "gauss_newton", "fam_center": True, "fam_lambda": 0.5}


def trainer_of(path: Path, seed: int = 0, **given: Any) -> FAMTrainer:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    return fam_trainer(path, tiny_bert(seed=seed), **{**settings, **CENTERED, **given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six steps with three checkpoints."""
    path = tmp_path_factory.mktemp("finished")
    trainer_of(path).train()
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def cut(path: Path) -> None:
    """As a full disk or a killed process leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    path.unlink()


def overwrite(path: Path) -> None:
    path.write_bytes(b"\0" * 100)


BROKEN = [
    ("trainer_state.json", remove),
    ("trainer_state.json", cut),
    ("trainer_state.json", overwrite),
    ("model.safetensors", remove),
    ("model.safetensors", cut),
    ("model.safetensors", overwrite),
    ("optimizer.pt", cut),
    ("optimizer.pt", overwrite),
    ("scheduler.pt", cut),
    ("rng_state.pth", cut),
]
IDS = [f"{name}-{how.__name__}" for name, how in BROKEN]


@pytest.mark.parametrize(("name", "damage"), BROKEN, ids=IDS)
def test_newest_whole_checkpoint_is_taken(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / "checkpoint-6" / name)
    overwrite(folder / "checkpoint-4" / "model.safetensors")
    trainer = trainer_of(folder, seed=1, max_steps=6)
    steps: list[int] = []
    trainer.training_step = counted(trainer, steps)
    expected = rf"checkpoint-6 .*{'weights' if name == 'model.safetensors' and damage is remove else name}.*"
    with pytest.warns(UserWarning, match=expected + "checkpoint-4 has a damaged model.safetensors: resuming from"):
        trainer.train(resume_from_checkpoint=True)
    assert steps == [2, 3, 4, 5]


def counted(trainer: FAMTrainer, steps: list[int]) -> Callable[..., Any]:
    step = trainer.training_step

    def counting(*args: Any, **kwargs: Any) -> Any:
        steps.append(trainer.state.global_step)
        return step(*args, **kwargs)

    return counting


def test_resumed_from_an_older_checkpoint_it_is_the_same_training(folder: Path, finished: Path) -> None:
    (folder / "checkpoint-6" / "trainer_state.json").unlink()
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    trainer = trainer_of(folder, seed=1)
    with pytest.warns(UserWarning, match="resuming from checkpoint-2 instead"):
        trainer.train(resume_from_checkpoint=True)
    uninterrupted = type(trainer.model).from_pretrained(finished / "checkpoint-6")
    assert_same_weights(trainer.model, uninterrupted)


@pytest.mark.parametrize(("name", "damage"), BROKEN, ids=IDS)
def test_damaged_checkpoint_is_refused_by_name(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / "checkpoint-4" / name)
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint='.*checkpoint-4' has ") as caught:
        trainer_of(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert (name in str(caught.value) or "has no weights" in str(caught.value)) and "\n" not in str(caught.value)


def test_no_whole_checkpoint(folder: Path) -> None:
    for checkpoint in folder.glob("checkpoint-*"):
        overwrite(checkpoint / "optimizer.pt")
    with pytest.raises(ValueError, match=r"contains no whole checkpoint: checkpoint-6 has a damaged optimizer.pt"):
        trainer_of(folder).train(resume_from_checkpoint=True)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint='nowhere' is no folder"):
        trainer_of(tmp_path).train(resume_from_checkpoint="nowhere")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_missing_states_are_named(folder: Path, name: str, strength: float) -> None:
    (folder / "checkpoint-4" / name).unlink()
    trainer = trainer_of(folder, fam_lambda=strength, fam_center=None)
    with pytest.warns(UserWarning, match=rf"checkpoint-4 has no {name}: .* will differ from an uninterrupted one"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def edit_mean(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    edit(state["stateful_callbacks"])
    file.write_text(json.dumps(state))


def set_mean(**given: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda callbacks: callbacks["FAM"]["mean"].update(given)


DAMAGED_MEANS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "length one": set_mean(mean=[1.0]),
    "too long": set_mean(mean=[0.5] * 17),
    "nested": set_mean(mean=[[0.5] * 16]),
    "empty": set_mean(mean=[]),
    "a number": set_mean(mean=3.0),
    "NaN": set_mean(mean=[float("nan")] * 16),
    "infinite": set_mean(mean=[float("inf")] + [0.5] * 15),
    "text": set_mean(mean=["a"] * 16),
    "a null": set_mean(mean=[None] * 16),
    "no mean": lambda callbacks: callbacks["FAM"]["mean"].pop("mean"),
    "no steps": lambda callbacks: callbacks["FAM"]["mean"].pop("steps"),
    "steps are text": set_mean(steps="4"),
    "negative steps": set_mean(steps=-1),
    "a mean of no steps": set_mean(steps=0),
    "steps without a mean": set_mean(mean=None),
    "a list": lambda callbacks: callbacks["FAM"].update(mean=[1.0]),
}


@pytest.mark.parametrize("name", DAMAGED_MEANS)
def test_damaged_mean_is_refused(folder: Path, name: str) -> None:
    edit_mean(folder, DAMAGED_MEANS[name])
    with pytest.raises(ValueError, match=r"running mean of the features of 'bert.pooler.dense' is damaged") as caught:
        trainer_of(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert "trainer_state.json" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["FAM", "mean"])
def test_missing_mean_is_said(folder: Path, name: str) -> None:
    edit_mean(folder, lambda callbacks: (callbacks if name == "FAM" else callbacks["FAM"]).pop(name))
    trainer = trainer_of(folder)
    with pytest.warns(UserWarning, match="The checkpoint has no running mean of the features .* starts anew"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert len(logged(trainer, "fam_kappa")) == 3 + 1


def test_mean_of_another_layer_is_said(folder: Path) -> None:
    edit_mean(folder, set_mean(layer="bert.encoder"))
    with pytest.warns(UserWarning, match="the running mean of another layer, 'bert.encoder' instead of"):
        trainer_of(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_whole_checkpoint_gives_no_warning(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer_of(folder, seed=1).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
