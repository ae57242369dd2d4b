"""Training methods do what their papers say, on any Trainer, and leave nothing behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LabelSmoother

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("sklearn")

from hf_fam import FAMTrainer
from hf_fam.frozen.stored_features import FeatureDataset, collate_features
from hf_fam.methods import METHODS, method_called
from hf_fam.methods.activation_penalty import _Penalized
from hf_fam.methods.base import Plain
from hf_fam.methods.item_loss import MeanLoss
from hf_fam.methods.logistic_regression import linear_layer
from support.tiny import (
    arguments,
    assert_same_weights,
    classified,
    hook_count,
    largest_difference,
    plain_arguments,
    tiny_bert,
    tiny_llama,
    weights,
)

GRADIENT_METHODS = sorted(name for name, kind in METHODS.items() if kind.has_learning_rate)
LOSSES = ("generalized_cross_entropy", "symmetric_cross_entropy", "bi_tempered", "label_smoothing")


def tempered(logits: Tensor, t: float) -> Tensor:
    """The tempered softmax, its normalization by bisection in float64 (Amid et al. 2019, equation 7)."""

    def powers(shift: Tensor) -> Tensor:
        return (1 + (1 - t) * (logits - shift)).clamp_min(0).pow(1 / (1 - t))

    low = logits.amax(-1, keepdim=True)  # the largest probability is 1 there
    high = low + (1 - logits.shape[-1] ** (t - 1)) / (1 - t)
    for _ in range(200):
        middle = (low + high) / 2
        is_too_large = powers(middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(is_too_large, middle, low), torch.where(is_too_large, high, middle)
    return powers((low + high) / 2)


def reference(name: str, strength: float, logits: Tensor, labels: Tensor) -> Tensor:
    p = torch.softmax(logits, -1)
    onehot = F.one_hot(labels, logits.shape[-1]).to(logits)
    label_p = (p * onehot).sum(-1)
    if name == "generalized_cross_entropy":
        return (1 - label_p**strength) / strength
    if name == "symmetric_cross_entropy":
        log_onehot = torch.where(onehot > 0, 0.0, -4.0)
        return -label_p.log() - strength * (p * log_onehot).sum(-1)
    if name == "label_smoothing":
        mixed = (1 - strength) * onehot + strength / logits.shape[-1]
        return -(mixed * torch.log_softmax(logits, -1)).sum(-1)
    t1, t2 = 1 - strength, 1 + strength
    q = tempered(logits, t2)

    def log_t(x: Tensor) -> Tensor:
        return (x ** (1 - t1) - 1) / (1 - t1)

    return (onehot * (log_t(onehot) - log_t(q)) - (onehot ** (2 - t1) - q ** (2 - t1)) / (2 - t1)).sum(-1)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_papers(name: str) -> None:
    """Values, and gradients against differences of values, in float64, at random strengths and inputs."""
    random = np.random.default_rng()
    for _ in range(5):
        classes, strength = int(random.integers(2, 12)), float(random.uniform(0.1, 0.6))
        logits = torch.tensor(2 * random.standard_normal((9, classes)), requires_grad=True)
        labels = torch.tensor(random.integers(0, classes, 9))
        found = METHODS[name](strength).loss(logits, labels)  # type: ignore[attr-defined]
        torch.testing.assert_close(found, reference(name, strength, logits.detach(), labels), rtol=1e-5, atol=1e-5)
        found.sum().backward()
        assert logits.grad is not None
        for k in range(classes):
            step = 1e-5 * F.one_hot(torch.tensor(k), classes)
            above, below = (reference(name, strength, logits.detach() + s * step, labels) for s in (1, -1))
            torch.testing.assert_close(logits.grad[:, k], (above - below) / 2e-5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["generalized_cross_entropy", "bi_tempered"])
def test_weak_losses_are_cross_entropy(name: str) -> None:
    logits, labels = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 4, (9,))
    found = METHODS[name](1e-4).loss(logits, labels)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="none"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("is_shifted", [False, True])
def test_means_are_over_labeled_rows(is_shifted: bool) -> None:
    """The same mean as the Trainer's label smoother, and over a whole step in several micro-batches."""
    logits, labels = torch.randn(4, 6, 5), torch.randint(0, 5, (4, 6))
    labels[0, 3:] = labels[2, :5] = -100
    mean = MeanLoss(METHODS["label_smoothing"](0.2), is_shifted)  # type: ignore[arg-type]
    expected = LabelSmoother(0.2)({"logits": logits}, labels.clone(), shift_labels=is_shifted)
    torch.testing.assert_close(mean({"logits": logits}, labels), expected)
    number = (labels[:, 1:] if is_shifted else labels).ne(-100).sum()
    halves = [mean({"logits": logits[k : k + 2]}, labels[k : k + 2], number) for k in (0, 2)]
    torch.testing.assert_close(sum(halves), expected)


def trainer_of(folder: Path, model: nn.Module | None = None, **changes: Any) -> Trainer:
    model = tiny_bert(dropout=0.0) if model is None else model
    return Trainer(model=model, args=plain_arguments(folder, **changes), train_dataset=classified())


def trained(name: str, folder: Path, strength: float | None = None, resume: Any = None, **changes: Any) -> Trainer:
    trainer = trainer_of(folder, **changes)
    method_called(name)(strength).apply(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_plain_is_the_trainer(tmp_path: Path) -> None:
    alone = trainer_of(tmp_path)
    alone.train()
    assert_same_weights(alone.model, trained("plain", tmp_path).model)
    assert Plain.field is None


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_every_method_acts_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(tmp_path)
    before, plain = hook_count(trainer.model), weights(trained("plain", tmp_path).model)
    kind = method_called(name)
    kind().apply(trainer)
    assert hook_count(trainer.model) == before
    trainer.train()
    assert hook_count(trainer.model) == before
    assert (largest_difference(weights(trainer.model), plain) > 1e-6) == (name != "plain")
    # Evaluation is that of the model: no noise, nothing dropped, nothing mixed.
    batch = {"input_ids": torch.tensor([row["input_ids"] for row in classified()])}
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits.numpy()
    assert trainer.predict(classified()).predictions[0] == pytest.approx(logits[0], abs=1e-5)


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_every_method_resumes_exactly(name: str, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(name, tmp_path / "whole", **saving)
    halves = trained(name, tmp_path / "halves", resume=str(tmp_path / "whole" / "checkpoint-2"), **saving)
    assert largest_difference(weights(whole.model), weights(halves.model)) < 1e-7


def test_fam_and_its_trainer_are_one(tmp_path: Path) -> None:
    alone = FAMTrainer(
        model=tiny_bert(dropout=0.0), args=arguments(tmp_path, fam_lambda=0.1), train_dataset=classified()
    )
    alone.train()
    assert_same_weights(alone.model, trained("fam", tmp_path, 0.1).model)
    off = FAMTrainer(model=tiny_bert(dropout=0.0), args=arguments(tmp_path, fam_lambda=0.0), train_dataset=classified())
    method_called("fam")(0.1).apply(off)
    off.train()
    assert_same_weights(alone.model, off.model)
    assert method_called("fam")().resolve(trainer_of(tmp_path)).strength == 0.003


@pytest.mark.parametrize(("name", "field"), [("weight_decay", "weight_decay"), ("neftune", "neftune_noise_alpha")])
def test_the_trainers_own_methods(name: str, field: str, tmp_path: Path) -> None:
    alone = trainer_of(tmp_path, **{field: 0.5})
    alone.train()
    assert_same_weights(alone.model, trained(name, tmp_path, 0.5).model)


def test_the_moving_average_is_that_of_torch(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Averaging(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
            self.average.update_parameters(model)  # the first one is a copy

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.average.update_parameters(model)

    alone, callback = trainer_of(tmp_path), Averaging()
    alone.add_callback(callback)
    alone.train()
    assert_same_weights(callback.average.module, trained("ema", tmp_path, 0.7).model)


class OwnLoop(TrainerCallback):
    """The loss of some rows and the weights after every epoch, by hand."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.losses: list[float] = []
        self.states: list[dict[str, Tensor]] = []
        self._tokens = torch.tensor([row["input_ids"] for row in rows])
        self._labels = torch.tensor([row["labels"] for row in rows])

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            logits = copy.deepcopy(model).eval()(input_ids=self._tokens).logits.double()
        self.losses.append(float(F.cross_entropy(logits, self._labels)))
        self.states.append(copy.deepcopy(model.state_dict()))


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    """Against a training on the other rows that looks at the held-out ones itself."""
    data = classified()
    order = np.random.default_rng(7).permutation(len(data))
    held_out, rest = [data[k] for k in order[:10]], [data[k] for k in sorted(order[10:])]
    settings = {"seed": 7, "max_steps": -1, "num_train_epochs": 6, "learning_rate": 0.03}
    alone = Trainer(tiny_bert(dropout=0.0), plain_arguments(tmp_path, **settings), train_dataset=rest)
    by_hand = OwnLoop(held_out)
    alone.add_callback(by_hand)
    alone.train()
    stopped = trained("early_stopping", tmp_path, 10 / 24, **settings)
    best = int(np.argmin(by_hand.losses))
    assert best < 5 and len(stopped.train_dataset) == 14  # the last epoch is another one
    for name, tensor in stopped.model.state_dict().items():
        torch.testing.assert_close(tensor, by_hand.states[best][name], rtol=0, atol=0)


def test_early_stopping_needs_rows_to_hold_out(tmp_path: Path) -> None:
    for data, number in ((classified(2), "2 rows"), (iter([]), "no known number of rows")):
        trainer = trainer_of(tmp_path)
        trainer.train_dataset = data
        with pytest.raises(ValueError, match=f"early_stopping_share=0.2 cannot hold out .* {number}"):
            method_called("early_stopping")().apply(trainer)


class Linear(nn.Module):
    """A linear classifier of features."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.classifier(x)
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class Pixels(Linear):
    """The same on pixels."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:  # type: ignore
        return super().forward(pixel_values, labels)


@pytest.mark.parametrize("kind", [Linear, Pixels])
def test_mixup_is_cross_entropy_of_mixed_items_and_labels(kind: type[Linear], tmp_path: Path) -> None:
    """One step of SGD against the gradient by hand, with the same draws."""
    torch.manual_seed(0)
    model = kind()
    name = kind.main_input_name
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    data = [{name: row, "labels": label} for row, label in zip(x, y, strict=True)]
    by_hand = copy.deepcopy(model)
    args = plain_arguments(
        tmp_path, max_steps=1, per_device_train_batch_size=8, optim="sgd", lr_scheduler_type="constant",
        learning_rate=0.5, max_grad_norm=0.0, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=data)
    method_called("mixup")(0.7).apply(trainer)
    draws: list[Any] = []
    own_beta, own_permutation = torch.distributions.Beta.sample, torch.randperm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributions.Beta.sample", lambda self: (draws.append(own_beta(self)), draws[-1])[1])
        patch.setattr("hf_fam.methods.mixup.torch.randperm", lambda n: (draws.append(own_permutation(n)), draws[-1])[1])
        trainer.train()
    weight, partners = float(draws[0]), draws[1]
    soft = weight * F.one_hot(y, 3).float() + (1 - weight) * F.one_hot(y[partners], 3).float()
    F.cross_entropy(by_hand.classifier(weight * x + (1 - weight) * x[partners]), soft).backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.5 * p.grad
    assert len(draws) == 2 and 0 < weight < 1
    assert largest_difference(weights(by_hand), weights(trainer.model)) < 1e-6


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_momentum_sam_is_that_of_the_paper(optim: str, accumulation: int, tmp_path: Path) -> None:
    """Four steps against the paper's loop in float64, which keeps the displaced weights and moves them back."""
    torch.manual_seed(0)
    model, rho, rate = Linear(), 0.4, 0.05
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    data = [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]
    by_hand = copy.deepcopy(model).double()
    args = plain_arguments(
        tmp_path, max_steps=4, per_device_train_batch_size=8 // accumulation, optim=optim, learning_rate=rate,
        gradient_accumulation_steps=accumulation, lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.1,
        optim_args="momentum=0.9" if optim == "sgd" else None, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=data)
    method_called("momentum_sam")(rho).apply(trainer)
    trainer.train()
    parameters = [*by_hand.parameters()]  # displaced
    first, second, factor = ([torch.zeros_like(p) for p in parameters] for _ in range(3))
    for step in range(4):
        rows = slice(8 * step, 8 * step + 8)
        loss = F.cross_entropy(by_hand.classifier(x[rows].double()), y[rows])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for k, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                p += factor[k]
                decay = 0.1 if p.ndim > 1 else 0.0  # the Trainer leaves biases alone
                if optim == "sgd":
                    first[k] = 0.9 * first[k] + g + decay * p
                    p -= rate * first[k]
                else:
                    first[k] = 0.9 * first[k] + 0.1 * g
                    second[k] = 0.999 * second[k] + 0.001 * g**2
                    corrected = second[k] / (1 - 0.999 ** (step + 1))
                    p *= 1 - rate * decay
                    p -= rate / (1 - 0.9 ** (step + 1)) * first[k] / (corrected.sqrt() + 1e-8)
            norm = torch.cat([v.flatten() for v in first]).norm()
            factor = [rho * v / norm for v in first]
            for p, f in zip(parameters, factor, strict=True):
                p -= f
    with torch.no_grad():
        for p, f in zip(parameters, factor, strict=True):
            p += f
    assert largest_difference(weights(by_hand.float()), weights(trainer.model)) < 2e-6


def test_momentum_sam_needs_momentum(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, optim="sgd")
    method_called("momentum_sam")().apply(trainer)
    with pytest.raises(ValueError, match="optim='sgd' with method='momentum_sam': momentum SAM needs"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_activation_penalty_is_of_features_and_weights(accumulation: int, tmp_path: Path) -> None:
    """One step of SGD against the gradient in float64, with a trained layer below the head."""

    class Deep(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(4, 4)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
            return super().forward(self.below(x), labels)

    torch.manual_seed(0)
    model, strength = Deep(), 0.3
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    data = [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]
    by_hand = copy.deepcopy(model).double()
    args = plain_arguments(
        tmp_path, max_steps=1, per_device_train_batch_size=8 // accumulation, optim="sgd", learning_rate=0.5,
        gradient_accumulation_steps=accumulation, lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=data)
    method_called("activation_penalty")(strength).apply(trainer)
    trainer.train()
    phi = by_hand.below(x.double())
    penalty = phi.pow(2).sum(1).mean() + by_hand.classifier.weight.pow(2).sum()
    (F.cross_entropy(by_hand.classifier(phi), y) + strength * penalty).backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.5 * p.grad
    assert largest_difference(weights(by_hand.float()), weights(trainer.model)) < 1e-6


@pytest.mark.parametrize("is_shifted", [False, True])
def test_the_activation_penalty_counts_labeled_tokens(is_shifted: bool) -> None:
    features, labels = torch.randn(2, 6, 4), torch.randint(0, 3, (2, 6))
    labels[0, 2:] = -100
    head = nn.Linear(4, 3)
    penalized = _Penalized(0.5, head, is_shifted)
    logits = head(features)
    penalized.keep(head, (features,))
    found = penalized.loss({"logits": logits}, labels)
    kept, targets = (features[:, :-1], labels[:, 1:]) if is_shifted else (features, labels)
    is_labeled = targets != -100
    expected = F.cross_entropy(head(kept[is_labeled]), targets[is_labeled])
    expected = expected + 0.5 * (kept[is_labeled].pow(2).sum(1).mean() + head.weight.pow(2).sum())
    torch.testing.assert_close(found, expected)


def test_noise_has_the_stated_size() -> None:
    features = torch.randn(2000, 16) * 5
    noisy: Any = METHODS["feature_noise"](0.3)
    ratio = (noisy.change(features) - features).norm(dim=-1) / features.norm(dim=-1)
    assert ratio.pow(2).mean().sqrt().item() == pytest.approx(0.3, rel=0.03)
    dropping: Any = METHODS["dropout"](0.25)
    kept = dropping.change(torch.ones(2000, 16))
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert kept[kept > 0].unique().tolist() == pytest.approx([1 / 0.75])


def frozen_trainer(folder: Path, labels: Tensor, classes: int) -> Trainer:
    features = torch.randn(len(labels), 5) + labels[:, None]
    data = FeatureDataset(features, labels, torch.ones(len(labels), dtype=torch.int64), False)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(5, classes)

        def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.classifier(features)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    return Trainer(model=Head(), args=plain_arguments(folder), train_dataset=data, data_collator=collate_features)


@pytest.mark.parametrize("name", ["logistic_regression", "flat_logistic_regression"])
@pytest.mark.parametrize("present", [[0, 1], [0, 1, 2], [0, 2, 3]])
def test_a_fitted_head_predicts_as_its_classifier(name: str, present: list[int], tmp_path: Path) -> None:
    """Also where the training data has not all classes of the head."""
    from sklearn.linear_model import LogisticRegression

    from hf_fam import FlatLogisticRegression

    torch.manual_seed(0)
    labels = torch.tensor(present).repeat(20)
    trainer = frozen_trainer(tmp_path, labels, classes=2 if present == [0, 1] else 4)
    method_called(name)(0.7 if name == "logistic_regression" else None).apply(trainer)
    trainer.train()
    data: Any = trainer.train_dataset
    x, y = data.features.double().numpy(), data.labels.numpy()
    makers = {
        "logistic_regression": lambda: LogisticRegression(C=0.7, max_iter=1000),
        "flat_logistic_regression": lambda: FlatLogisticRegression(),
    }
    expected = makers[name]().fit(x, y).predict_proba(x)
    predicted: Any = torch.softmax(torch.tensor(trainer.predict(data).predictions), -1)
    assert predicted[:, present].numpy() == pytest.approx(expected, abs=1e-5)
    assert predicted.sum(-1).numpy() == pytest.approx(1.0)
    assert predicted[:, [k for k in range(predicted.shape[1]) if k not in present]].sum() < 1e-6


def test_linear_layers_of_two_classes_are_symmetric() -> None:
    class Fitted:
        classes_, coef_, intercept_ = np.array([0, 1]), np.array([[2.0, 4.0]]), np.array([1.0])

    weight, bias = linear_layer(Fitted, 2)
    assert weight.tolist() == [[-1.0, -2.0], [1.0, 2.0]] and bias.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [
        ("plain", 0.1, "'plain' has no strength"),
        ("sam", 0.0, "sam_rho=0.0: give a number above 0"),
        ("dropout", 1.0, "dropout_rate=1.0: give a number above 0 and below 1"),
        ("ema", -1.0, "ema_decay=-1.0"),
    ],
)
def test_strengths_out_of_range(name: str, strength: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_called(name)(strength)


def test_strength_0_of_fam_is_plain_training(tmp_path: Path) -> None:
    weights = []
    for name, strength in (("plain", None), ("fam", 0.0)):
        trainer = Trainer(tiny_bert(), plain_arguments(tmp_path), train_dataset=classified())
        method_called(name)(strength).apply(trainer)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*weights)


def test_what_a_method_cannot_do_is_refused(tmp_path: Path) -> None:
    regression = tiny_bert(num_labels=1)
    for name in (*LOSSES, "mixup", "activation_penalty"):
        with pytest.raises(ValueError, match="one of several classes"):
            method_called(name)().apply(trainer_of(tmp_path, regression))
    with pytest.raises(ValueError, match="load_best_model_at_end would replace the weights"):
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
        args = plain_arguments(tmp_path, **best)
        method_called("ema")().apply(Trainer(model=tiny_bert(), args=args, eval_dataset=classified()))
    frozen = tiny_bert()
    frozen.bert.requires_grad_(False)
    with pytest.raises(ValueError, match="no effect on a frozen backbone"):
        method_called("neftune")().apply(trainer_of(tmp_path, frozen))
    with pytest.raises(ValueError, match="set freeze_backbone"):
        method_called("logistic_regression")().apply(trainer_of(tmp_path))
    with pytest.raises(ValueError, match="method='fma': did you mean fam"):
        method_called("fma")


class OwnLoss(Trainer):
    """Computes the loss past everything that the Trainer offers."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


@pytest.mark.parametrize("name", [*LOSSES, "mixup", "activation_penalty"])
def test_a_trainer_that_goes_past_a_method_is_told(name: str, tmp_path: Path) -> None:
    trainer = OwnLoss(model=tiny_bert(), args=plain_arguments(tmp_path), train_dataset=classified())
    method_called(name)().apply(trainer)
    with pytest.raises(ValueError, match=f"method='{name}' has no effect: this Trainer's compute_loss goes past"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_language_models_are_trained_on_the_next_token(tmp_path: Path) -> None:
    """A loss that is cross-entropy trains as the model's own loss does."""
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in classified()]
    args = plain_arguments(tmp_path)
    alone = Trainer(model=tiny_llama(), args=args, train_dataset=rows)
    alone.train()
    other = Trainer(model=tiny_llama(), args=args, train_dataset=rows)
    method_called("label_smoothing")(1e-9).apply(other)
    other.train()
    assert largest_difference(weights(alone.model), weights(other.model)) < 1e-5
