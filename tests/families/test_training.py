"""For every architecture: FAMTrainer with default settings trains, moves the weights and touches nothing else."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_fam import FAMTrainer
from support.families import CASES, Case, collate, rows
from support.tiny import arguments, hook_count, logged, plain_arguments, weights

LAYERS = ("auto", "representation")
TRAINED = [case for case in CASES if set(case.refused) != set(LAYERS)]
REFUSED = [(case, layer) for case in CASES for layer in case.refused]

STEPS = 2
PLAIN: dict[str, Any] = {
    "max_steps": STEPS,
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 0,
    "remove_unused_columns": False,
}


def ids(pairs: list[tuple[Case, str]]) -> list[str]:
    return [f"{case.id}-{layer}" for case, layer in pairs]


def evaluated(trainer: Trainer, batch: dict[str, Any]) -> list[Tensor]:
    """What evaluation sees: loss, logits, and whatever else the model returns."""
    found: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                collect(part)

    trainer.model.eval()
    collect(trainer.prediction_step(trainer.model, copy.deepcopy(batch), prediction_loss_only=False)[:2])
    return found


class EvaluateWhileTraining(TrainerCallback):
    """After the first step, while the hooks are there, evaluation is that of a copy that never saw FAM."""

    trainer: FAMTrainer
    same: bool | None = None

    def __init__(self, batch: dict[str, Any], untouched: Trainer) -> None:
        self.batch, self.untouched = batch, untouched

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.untouched.model.load_state_dict(model.state_dict())
            found, expected = evaluated(self.trainer, self.batch), evaluated(self.untouched, self.batch)
            model.train()
            self.same = len(found) > 1 and all(map(torch.equal, found, expected))


def data(case: Case, model: nn.Module) -> dict[str, Any]:
    return {"train_dataset": list(rows(case.inputs(model))), "data_collator": collate}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Length of the difference of all floating-point weights."""
    squares = [(one[n] - other[n]).double().square().sum() for n in one if one[n].is_floating_point()]
    return float(torch.stack(squares).sum().sqrt())


def trained_plainly(case: Case, folder: Path) -> Trainer:
    model = case.build()
    trainer = Trainer(model=model, args=plain_arguments(folder, **PLAIN), **data(case, model))
    torch.manual_seed(5)
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.id)
def test_training(case: Case, tmp_path: Path) -> None:
    before = weights(case.build())
    plain = trained_plainly(case, tmp_path)
    of_plain = weights(plain.model)
    for layer in [layer for layer in LAYERS if layer not in case.refused]:
        model = case.build()
        watch = EvaluateWhileTraining(case.inputs(model), plain)
        args = arguments(tmp_path, **PLAIN, fam_layer=layer)
        trainer = watch.trainer = FAMTrainer(model=model, args=args, callbacks=[watch], **data(case, model))
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train()
        kappas = logged(trainer, "fam_kappa")
        assert len(kappas) == STEPS and all(k != 0 for k in kappas)
        after = weights(model)
        moved = difference(after, of_plain) / difference(of_plain, before)
        assert 5e-6 < moved < 0.3, moved  # other dropout, say, would move them by more
        assert watch.same, "evaluation is another one than without FAM"
        assert hook_count(model) == hook_count(plain.model), "transformers hooks some models itself"


REMEDY = r"use \"|use fam|Name the layer|choose|`hf-fam layers MODEL`"


@pytest.mark.parametrize(("case", "layer"), REFUSED, ids=ids(REFUSED))
def test_refusals(case: Case, layer: str, tmp_path: Path) -> None:
    model = case.build()
    hooks, before = hook_count(model), weights(model)
    args = arguments(tmp_path, **PLAIN, fam_layer=layer)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(case.refused[layer].message)) as refusal:
        FAMTrainer(model=model, args=args, **data(case, model)).train()
    assert re.search(REMEDY, str(refusal.value)), refusal.value
    assert hook_count(model) == hooks
    assert difference(weights(model), before) == 0


PROPOSED = [case for case in CASES if case.instead]


@pytest.mark.parametrize("case", PROPOSED, ids=lambda case: case.id)
def test_what_the_table_proposes_instead_works(case: Case, tmp_path: Path) -> None:
    model = case.build()
    before = weights(model)
    trainer = FAMTrainer(model=model, args=arguments(tmp_path, **PLAIN, **case.instead), **data(case, model))
    trainer.train()
    assert all(k != 0 for k in logged(trainer, "fam_kappa"))
    assert difference(weights(model), before) > 0
    for name, value in case.instead.items():
        assert value in case.note, f"{name}={value} is not in the note"
