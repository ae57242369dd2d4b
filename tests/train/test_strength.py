"""How strong the term is: by default, while warming up, in every n-th step, and under a cap."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_fam import FAMArguments, FAMTrainer
from hf_fam.flatness.strength import DEFAULT_LAMBDA, LARGE_HEAD_LAMBDA
from support.tiny import arguments, classified, fam_trainer, gradients_of_first_step, history, logged, tiny_bert

REPRESENTATION = {"fam_layer": "representation", "fam_estimator": "gauss_newton"}


def lambdas(path: Path, **given: Any) -> list[float]:
    trainer = fam_trainer(path, **given)
    trainer.train()
    return logged(trainer, "fam_lambda")


@pytest.mark.parametrize("estimator", DEFAULT_LAMBDA)
def test_default_is_that_of_the_estimator(tmp_path: Path, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: 2.0 ** -(k + 5) for k, name in enumerate(DEFAULT_LAMBDA)}
    monkeypatch.setattr("hf_fam.train.strength.DEFAULT_LAMBDA", values)
    layer = "head" if estimator in ("closed_form", "row_probes", "dense") else "representation"
    found = lambdas(tmp_path, fam_estimator=estimator, fam_layer=layer, max_steps=2)
    assert found == [values[estimator]] * 2


def test_default_of_a_large_head_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    for estimator in ("closed_form", "hessian", "perturbation"):
        assert lambdas(tmp_path, fam_estimator=estimator, max_steps=2) == [LARGE_HEAD_LAMBDA] * 2
    hidden = lambdas(tmp_path, **REPRESENTATION, max_steps=2)
    assert hidden == [DEFAULT_LAMBDA["gauss_newton"]] * 2


@pytest.mark.filterwarnings("ignore:The closed form does not hold")
def test_default_does_not_change_when_the_closed_form_turns_out_not_to_hold(tmp_path: Path) -> None:
    assert DEFAULT_LAMBDA["closed_form"] != DEFAULT_LAMBDA["hessian"]
    trainer = fam_trainer(tmp_path, max_steps=3, compute_loss_func=focal)
    trainer.train()
    assert trainer.relative_flatness.estimator == "hessian"
    assert logged(trainer, "fam_lambda") == [DEFAULT_LAMBDA["closed_form"]] * 3


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    p = outputs.logits.softmax(-1).gather(-1, labels[:, None])
    return ((1 - p) ** 2 * -p.log()).mean()


def test_defaults_are_documented_strengths_above_zero() -> None:
    assert all(0 < value < 1 for value in DEFAULT_LAMBDA.values())


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


def test_every_third_step_is_three_times_as_strong(tmp_path: Path) -> None:
    model = tiny_bert(dropout=0.0).double()
    plain, once, thrice = (
        gradients_of_first_step(tmp_path, model, fam_lambda=strength, fam_every_n_steps=n)
        for strength, n in ((0.0, 1), (100.0, 1), (100.0, 3))
    )
    for name in plain:
        torch.testing.assert_close(thrice[name] - plain[name], 3 * (once[name] - plain[name]), rtol=1e-8, atol=1e-10)
    assert (once["classifier.weight"] - plain["classifier.weight"]).abs().max() > 1e-3


def test_skipped_steps_are_plain(tmp_path: Path) -> None:
    """From equal weights a skipped step takes the loss's gradient alone."""
    recorded = []
    for strength in (0.0, 100.0):
        trainer = fam_trainer(
            tmp_path,
            tiny_bert(dropout=0.0),
            fam_lambda=strength,
            fam_every_n_steps=2,
            max_steps=2,
            learning_rate=0.0,
        )
        trainer.train()
        recorded.append(logged(trainer, "grad_norm"))
    plain, fam = recorded
    assert fam[0] != plain[0]
    assert fam[1] == plain[1]


def test_every_third_step_is_logged_unscaled_and_where_it_happened(tmp_path: Path) -> None:
    every, third = (
        fam_trainer(tmp_path, tiny_bert(dropout=0.0), fam_lambda=0.25, fam_every_n_steps=n, learning_rate=0.0)
        for n in (1, 3)
    )
    for trainer in (every, third):
        trainer.train()
    entries = [{k: v for k, v in entry.items() if k.startswith("fam_")} for entry in history(third)[:4]]
    expected = [{k: v for k, v in entry.items() if k.startswith("fam_")} for entry in history(every)[:4]]
    assert entries == [expected[0], {}, {}, {k: v for k, v in expected[3].items()}]
    assert entries[3]["fam_lambda"] == 0.25


def test_cap_lowers_the_strength_to_the_ratio(tmp_path: Path) -> None:
    """At a learning rate of zero the lagged ratio is the present one."""
    data = [{"input_ids": [3, 4, 5], "labels": 1}] * 8
    given = {"fam_lambda": 1e6, "learning_rate": 0.0, "train_dataset": data, "fam_max_grad_ratio": 0.25}
    trainer = fam_trainer(tmp_path, tiny_bert(dropout=0.0), **given)
    trainer.train()
    found, ratios = logged(trainer, "fam_lambda"), logged(trainer, "fam_grad_ratio")
    assert found[0] == 0  # nothing is known yet
    assert all(0 < value < 1e6 for value in found[1:])
    assert ratios == pytest.approx([0.0] + [0.25] * 3, rel=1e-5)


@pytest.mark.parametrize("center", [False, True])
def test_no_step_is_above_the_cap(tmp_path: Path, center: bool) -> None:
    """The first steps, in which the ratio or the mean is not known, have the gradient of the loss alone."""
    given = {"fam_lambda": 1e6, "learning_rate": 0.0, "fam_center": center, **REPRESENTATION}
    norms = {}
    for cap in (1e-6, None):
        model = tiny_bert(dropout=0.0)
        trainer = fam_trainer(tmp_path, model, **given, fam_max_grad_ratio=cap, max_grad_norm=1e9, max_steps=4)
        trainer.train()
        norms[cap] = logged(trainer, "grad_norm")
    plain = fam_trainer(tmp_path, tiny_bert(dropout=0.0), **{**given, "fam_lambda": 0}, max_grad_norm=1e9, max_steps=4)
    plain.train()
    assert norms[1e-6] == pytest.approx(logged(plain, "grad_norm"), rel=1e-3)
    assert norms[None][2] > 10 * norms[1e-6][2]


def test_cap_never_raises_the_strength(tmp_path: Path) -> None:
    given = {"fam_lambda": 0.5, **REPRESENTATION}
    capped, free = (fam_trainer(tmp_path, tiny_bert(), **given, fam_max_grad_ratio=r) for r in (1e9, None))
    for trainer in (capped, free):
        torch.manual_seed(3)
        trainer.train()
    assert logged(capped, "fam_lambda") == [0.0, 0.5, 0.5, 0.5]
    assert logged(free, "fam_lambda") == [0.5] * 4


def test_cap_uses_the_ratio_of_the_step_before(tmp_path: Path) -> None:
    """lambda after the first step is cap / (ratio of that step at unit strength)."""
    trainer = fam_trainer(tmp_path, fam_lambda=64.0, fam_max_grad_ratio=0.01, **REPRESENTATION)
    trainer.train()
    strengths, ratios = logged(trainer, "fam_lambda"), logged(trainer, "fam_grad_ratio")
    assert strengths[0] == 0
    for k in range(1, 3):
        assert strengths[k + 1] == pytest.approx(min(64.0, 0.01 / (ratios[k] / strengths[k])), rel=1e-5)
    assert len(set(strengths)) == 4


def test_cap_takes_the_ratio_over_all_micro_batches(tmp_path: Path) -> None:
    recorded: list[Tensor] = []
    given = {"fam_lambda": 64.0, "fam_max_grad_ratio": 0.01, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = fam_trainer(tmp_path, fam_loss_scaling="stock", **REPRESENTATION, **given)
    measure = trainer.relative_flatness.gradient_squares

    def note(loss: Tensor, kappa: Tensor) -> Tensor | None:
        squares = measure(loss, kappa)
        recorded.append(squares)
        return squares

    trainer.relative_flatness.gradient_squares = note
    trainer.train()
    assert len(recorded) == 4 and not torch.equal(recorded[0], recorded[1])
    of_kappa, of_loss = (recorded[0] + recorded[1]).sqrt().tolist()
    assert logged(trainer, "fam_lambda")[1] == pytest.approx(0.01 / (of_kappa / of_loss), rel=1e-5)


class Interpolating(nn.Module):
    """Fits its data exactly: the loss has no gradient, its curvature is there all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(4, 2)
        self.head.weight.data *= 1000

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids).mean(1))
        return {"loss": nn.functional.mse_loss(logits, logits.detach()), "logits": logits}


def test_cap_recovers_from_a_step_in_which_the_loss_had_no_gradient(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, Interpolating(), fam_lambda=0.5, fam_max_grad_ratio=0.5, max_steps=3)
    trainer.train()
    strengths = logged(trainer, "fam_lambda")
    assert len(strengths) == 3  # still measured, so that it can come back
    assert all(0 <= strength <= 1e-30 for strength in strengths[1:])


def test_a_batch_without_labels_leaves_the_cap_as_it_was(tmp_path: Path) -> None:
    """It has no kappa, so its ratio says nothing of the next step."""
    silent: list[bool] = []

    def over_labels(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        counted = labels >= 0
        silent.append(not counted.any())
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / max(1, int(counted.sum()))

    data = [{"input_ids": [3, 4, 5 + k], "labels": k % 3 if k % 3 else -100} for k in range(9)]
    given = {"fam_lambda": 1e6, "fam_max_grad_ratio": 0.1, "per_device_train_batch_size": 1, "max_steps": 9}
    trainer = fam_trainer(tmp_path, train_dataset=data, compute_loss_func=over_labels, learning_rate=0.0, **given)
    trainer.train()
    strengths = logged(trainer, "fam_lambda")
    told = [k for k in range(1, 8) if silent[k] and strengths[k] > 0]
    assert told and all(strengths[k + 1] == strengths[k] for k in told)
    assert len(set(strengths)) > 4


def test_weights_only_changes_the_gradient_of_the_weight_alone(tmp_path: Path) -> None:
    model = tiny_bert(dropout=0.0).double()
    plain, alone, full = (
        gradients_of_first_step(tmp_path, model, fam_lambda=strength, fam_gradient=gradient)
        for strength, gradient in ((0.0, "full"), (1.0, "weights_only"), (1.0, "full"))
    )
    assert [name for name in plain if not torch.allclose(plain[name], alone[name], rtol=1e-9)] == ["classifier.weight"]
    assert len([name for name in plain if not torch.allclose(plain[name], full[name], rtol=1e-9)]) > 10


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


def test_cap_of_the_perturbation_is_refused() -> None:
    """The perturbation's term has no gradient of its own that could be measured."""
    with pytest.raises(ValueError, match='fam_max_grad_ratio=0.5 cannot cap fam_estimator="perturbation"'):
        FAMArguments(fam_estimator="perturbation", fam_max_grad_ratio=0.5)


def test_cap_of_weights_only_is_refused() -> None:
    """Its gradient does not reach the features, at which the ratio is taken."""
    with pytest.raises(ValueError, match='fam_max_grad_ratio=0.5 cannot cap fam_gradient="weights_only"'):
        FAMArguments(fam_gradient="weights_only", fam_max_grad_ratio=0.5)


@pytest.mark.parametrize("layer, features", [("head", 16), ("bert.encoder.layer.1.output.dense", 24)])
def test_delta_is_the_size_of_the_perturbation_that_lambda_stands_for(
    tmp_path: Path, layer: str, features: int
) -> None:
    model = tiny_bert(intermediate_size=24)
    trainer = fam_trainer(tmp_path, model, fam_lambda=0.02, fam_layer=layer, max_steps=1)
    trainer.train()
    assert logged(trainer, "fam_delta") == pytest.approx([math.sqrt(2 * features * 0.02)], rel=1e-6)


def test_ratio_is_measured_now_and_then_without_a_cap(tmp_path: Path) -> None:
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
