"""Frozen parts, odd batches and half precision: the term is still that of the layer, the batch and the model."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.tiny import classified, fam_trainer, gradients_of_first_step, logged, tiny_bert, weights

REPRESENTATION = {"fam_layer": "representation", "fam_estimator": "gauss_newton"}
PERTURBATION = {"fam_layer": "representation", "fam_estimator": "perturbation"}
LAST_BLOCK = {"fam_layer": "bert.encoder.layer.1.output.dense", "fam_estimator": "gauss_newton"}


def textbook_kappa(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """mean_i ||phi_i||^2 Var_{k ~ p_i}(w_k), without the package."""
    seen: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    p, w = model(**batch).logits.softmax(-1), model.classifier.weight
    handle.remove()
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    return (seen[0].square().sum(-1) * variance).mean()


def large_bert() -> nn.Module:
    """Weights large enough that neither probabilities nor features are all alike."""
    model = tiny_bert(dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


# Frozen parts


@pytest.mark.parametrize(
    "frozen, given",
    [
        (["bert"], {}),
        (["bert.embeddings", "bert.encoder"], REPRESENTATION),
        (["bert.embeddings", "bert.encoder"], PERTURBATION),
        (["bert.embeddings"], LAST_BLOCK),
        (["classifier"], {}),
        (["classifier"], REPRESENTATION),
        (["bert.pooler"], {}),
        (["bert.pooler", "classifier"], REPRESENTATION),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value.get("fam_estimator", "closed_form"),
)
def test_frozen_parts_leave_the_gradients_of_the_others_alone(
    tmp_path: Path, frozen: list[str], given: dict[str, Any]
) -> None:
    model = large_bert().double()
    strong = {"fam_lambda": 20.0, "fam_center": False, "fam_smoothing": 0.0, **given}
    free = gradients_of_first_step(tmp_path, model, **strong)
    without_term = gradients_of_first_step(tmp_path, model, fam_lambda=0)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    found = gradients_of_first_step(tmp_path, model, **strong)
    assert found.keys() == {n for n in free if not n.startswith(tuple(frozen))}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, free[name], rtol=1e-9, atol=1e-12)
    assert any((gradient - without_term[name]).abs().max() > 1e-3 for name, gradient in found.items())


def test_frozen_parts_do_not_move(tmp_path: Path) -> None:
    model = tiny_bert()
    model.bert.requires_grad_(False)
    before = weights(model)
    trainer = fam_trainer(tmp_path, model, fam_lambda=1.0)
    trainer.train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert all(ratio > 0 for ratio in logged(trainer, "fam_grad_ratio"))


# Odd batches


def test_batches_of_any_size_log_their_own_kappa(tmp_path: Path) -> None:
    """Ten items in batches of four: the last one of an epoch has two."""
    model = tiny_bert(dropout=0.0).double()
    given = {"train_dataset": classified(10), "learning_rate": 0.0, "max_steps": 3, "fam_lambda": 0.1}
    trainer = fam_trainer(tmp_path, model, **given)
    sizes: list[int] = []
    expected: list[float] = []
    step = trainer.training_step

    def noting(model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:
        sizes.append(len(inputs["labels"]))
        expected.append(textbook_kappa(trainer.model, inputs).item())
        return step(model, inputs, *args)

    trainer.training_step = noting
    trainer.train()
    assert sizes == [4, 4, 2]
    assert logged(trainer, "fam_kappa") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "given",
    [{}, REPRESENTATION, PERTURBATION, LAST_BLOCK],
    ids=["closed_form", "representation", "perturbation", "block"],
)
def test_batches_of_one(tmp_path: Path, given: dict[str, Any]) -> None:
    trainer = fam_trainer(tmp_path, per_device_train_batch_size=1, fam_lambda=0.1, max_steps=5, **given)
    trainer.train()
    kappas = logged(trainer, "fam_kappa")
    assert len(kappas) == 5 and all(math.isfinite(kappa) and kappa != 0 for kappa in kappas)


def test_items_of_different_length(tmp_path: Path) -> None:
    """Padding is masked out: with or without it kappa is the same."""
    data = classified(4)
    padded = [{**d, "input_ids": d["input_ids"] + [0] * 3, "attention_mask": [1] * 5 + [0] * 3} for d in data]
    kappas = []
    for items in (data, padded):
        trainer = fam_trainer(tmp_path, tiny_bert(dropout=0.0).double(), train_dataset=items, max_steps=1)
        trainer.train()
        kappas += logged(trainer, "fam_kappa")
    assert kappas[0] == pytest.approx(kappas[1], rel=1e-6)


# Half precision


def kappas_of(path: Path, model: nn.Module, **given: Any) -> list[float]:
    """Of three batches at fixed weights."""
    trainer = fam_trainer(path, model, learning_rate=0.0, max_steps=3, per_device_train_batch_size=8, **given)
    trainer.train()
    return logged(trainer, "fam_kappa")


@pytest.mark.parametrize(
    "given, tolerance",
    [({}, 0.01), ({**REPRESENTATION, "fam_probes": 64}, 0.03), ({**LAST_BLOCK, "fam_probes": 64}, 0.03)],
    ids=["closed_form", "representation", "block"],
)
def test_kappa_under_autocast_is_that_of_float64(tmp_path: Path, given: dict[str, Any], tolerance: float) -> None:
    """From equal seeds, so that probes differ by rounding alone."""
    model = large_bert()
    exact = kappas_of(tmp_path, copy.deepcopy(model).double(), **given)
    mixed = kappas_of(tmp_path, model, bf16=True, **given)
    assert mixed == pytest.approx(exact, rel=tolerance)
    assert mixed != pytest.approx(exact, rel=1e-6)  # autocast was on


@pytest.mark.parametrize(
    "given, tolerance",
    [({}, 0.02), ({**REPRESENTATION, "fam_probes": 64}, 0.05), ({**LAST_BLOCK, "fam_probes": 64}, 0.05)],
    ids=["closed_form", "representation", "block"],
)
def test_kappa_of_bfloat16_weights_is_that_of_float64(tmp_path: Path, given: dict[str, Any], tolerance: float) -> None:
    model = large_bert().bfloat16()
    exact = kappas_of(tmp_path, copy.deepcopy(model).double(), **given)
    assert kappas_of(tmp_path, model, **given) == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16_weights"])
@pytest.mark.parametrize(
    "given",
    [{}, REPRESENTATION, PERTURBATION, LAST_BLOCK, {**REPRESENTATION, "fam_estimator": "hessian"}],
    ids=["closed_form", "representation", "perturbation", "block", "hessian"],
)
@pytest.mark.filterwarnings("error:The closed form does not hold")
def test_half_precision_trains(tmp_path: Path, given: dict[str, Any], autocast: bool) -> None:
    model = tiny_bert() if autocast else tiny_bert().bfloat16()
    before = weights(model)
    trainer = fam_trainer(tmp_path, model, bf16=autocast, fam_lambda=0.1, **given)
    trainer.train()
    after = weights(model)
    assert {t.dtype for t in after.values() if t.is_floating_point()} == {torch.float32 if autocast else torch.bfloat16}
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert len(logged(trainer, "fam_kappa")) == 4


def test_half_precision_gradient_of_the_term_is_that_of_float64(tmp_path: Path) -> None:
    """In direction and size: the term alone, closed form."""
    model = large_bert()
    found = {}
    for name, half in (("exact", False), ("mixed", True)):
        start = copy.deepcopy(model) if half else copy.deepcopy(model).double()
        with_term, without = (
            gradients_of_first_step(tmp_path, start, bf16=half, fam_lambda=strength, per_device_train_batch_size=8)
            for strength in (10.0, 0.0)
        )
        found[name] = torch.cat([(with_term[n] - without[n]).double().flatten() for n in with_term])
    error = (found["mixed"] - found["exact"]).norm() / found["exact"].norm()
    assert 0 < error < 0.05
