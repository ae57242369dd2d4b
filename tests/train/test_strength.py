"""How strong the term is: by default, while warming up, and as the log shows it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_fam import FAMTrainer
from hf_fam.flatness.estimators import default_lambda, estimator_called, estimators
from support.tiny import arguments, classified, fam_trainer, gradients_of_first_step, logged, tiny_bert

REPRESENTATION = {"fam_layer": "representation", "fam_estimator": "gauss_newton"}


def lambdas(path: Path, **given: Any) -> list[float]:
    trainer = fam_trainer(path, **given)
    trainer.train()
    return logged(trainer, "fam_lambda")


@pytest.mark.parametrize("estimator", [kind.name for kind in estimators()])
def test_default_is_that_of_the_estimator(tmp_path: Path, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {kind.name: 2.0 ** -(k + 5) for k, kind in enumerate(estimators())}
    for kind in estimators():
        monkeypatch.setattr(kind, "default_strength", values[kind.name])
    layer = "head" if estimator == "dense" or estimator_called(estimator).only_at_head else "representation"
    found = lambdas(tmp_path, fam_estimator=estimator, fam_layer=layer, max_steps=2)
    assert found == [values[estimator]] * 2


def test_default_of_a_large_head_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    for estimator in ("closed_form", "hessian", "perturbation"):
        strength = default_lambda(estimator, out_features=3, at_head=True)
        assert strength < 0.1 * estimator_called(estimator).default_strength
        assert lambdas(tmp_path, fam_estimator=estimator, max_steps=2) == [strength] * 2
    hidden = lambdas(tmp_path, **REPRESENTATION, max_steps=2)
    assert hidden == [estimator_called("gauss_newton").default_strength] * 2


@pytest.mark.filterwarnings("ignore:The closed form does not hold")
def test_default_does_not_change_when_the_closed_form_turns_out_not_to_hold(tmp_path: Path) -> None:
    default, of_probes = (estimator_called(name).default_strength for name in ("closed_form", "hessian"))
    assert default != of_probes
    trainer = fam_trainer(tmp_path, max_steps=3, compute_loss_func=focal)
    trainer.train()
    assert trainer.relative_flatness.estimator == "hessian"
    assert logged(trainer, "fam_lambda") == [default] * 3


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    p = outputs.logits.softmax(-1).gather(-1, labels[:, None])
    return ((1 - p) ** 2 * -p.log()).mean()


def test_defaults_are_documented_strengths_above_zero() -> None:
    assert all(0 < kind.default_strength < 1 for kind in estimators())


@pytest.mark.parametrize("warmup", [4, 0.5])
def test_warm_up_is_linear_in_steps_or_a_fraction_of_them(tmp_path: Path, warmup: float) -> None:
    found = lambdas(tmp_path, fam_lambda=0.5, fam_warmup_steps=warmup, max_steps=8)
    assert found == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_warm_up_scales_the_gradient(tmp_path: Path) -> None:
    model = tiny_bert(dropout=0.0).double()
    plain, quarter, full = (
        gradients_of_first_step(tmp_path, model, fam_lambda=strength, fam_warmup_steps=warmup)
        for strength, warmup in ((0.0, 0), (100.0, 4), (100.0, 0))
    )
    for name in plain:
        torch.testing.assert_close(4 * (quarter[name] - plain[name]), full[name] - plain[name], rtol=1e-8, atol=1e-10)
    assert (full["classifier.weight"] - plain["classifier.weight"]).abs().max() > 1e-3


class AsksForOutputs(FAMTrainer):
    """A loss that looks at the outputs, by way of the mixin."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        assert outputs.logits.shape[-1] == 3
        return (loss, outputs) if return_outputs else loss


def test_term_is_in_the_loss_that_comes_with_outputs(tmp_path: Path) -> None:
    norms = []
    for kind in (AsksForOutputs, FAMTrainer):
        args = arguments(tmp_path, fam_lambda=5.0, max_steps=2)
        trainer = kind(tiny_bert(dropout=0.0), args, train_dataset=classified())
        trainer.train()
        norms.append(logged(trainer, "grad_norm"))
    plain = fam_trainer(tmp_path, tiny_bert(dropout=0.0), fam_lambda=0.0, max_steps=2)
    plain.train()
    assert norms[0] == norms[1] != logged(plain, "grad_norm")


@pytest.mark.parametrize("layer, features", [("head", 16), ("bert.encoder.layer.1.output.dense", 24)])
def test_delta_is_the_size_of_the_perturbation_that_lambda_stands_for(
    tmp_path: Path, layer: str, features: int
) -> None:
    model = tiny_bert(intermediate_size=24)
    trainer = fam_trainer(tmp_path, model, fam_lambda=0.02, fam_layer=layer, max_steps=1)
    trainer.train()
    assert logged(trainer, "fam_delta") == pytest.approx([math.sqrt(2 * features * 0.02)], rel=1e-6)


def test_ratio_is_measured_now_and_then(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0.1, max_steps=12)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "fam_grad_ratio" in entry] == [1, 11]


def test_ratio_is_the_one_of_gradient_norms_at_the_features(tmp_path: Path) -> None:
    """Against autograd on the features of the head, float64."""
    model = tiny_bert(dropout=0.0).double()
    trainer = fam_trainer(tmp_path, model, fam_lambda=0.5, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    seen: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model(**batch)
    handle.remove()
    phi, w, p = seen[0], model.classifier.weight, output.logits.softmax(-1)
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    kappa = (phi.square().sum(-1) * variance).mean()
    of_kappa, of_loss = (torch.autograd.grad(y, phi, retain_graph=True)[0].norm() for y in (kappa, output.loss))
    trainer.train()
    assert logged(trainer, "fam_grad_ratio") == pytest.approx([float(0.5 * of_kappa / of_loss)], rel=1e-6)
