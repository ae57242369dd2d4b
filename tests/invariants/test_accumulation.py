"""However a batch is cut into micro-batches, training is the same: loss, relative flatness and weights.

Float64 models without dropout, the closed form (no random probes), and a strength at which the term outweighs the loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForTokenClassification, Trainer

from hf_fam import FAMMixin
from support.arrangements import llama
from support.tiny import (
    arguments,
    classified,
    fam_trainer,
    gradients_of_first_step,
    largest_difference,
    logged,
    texts,
    tiny_bert,
    tiny_llama,
    weights,
)

CUTS = [(8, 1), (4, 2), (1, 8)]  # items in a micro-batch, micro-batches in a step


@dataclass
class Case:
    """A model, data, a strength that makes the term matter, and how exactly the cuts have to agree."""

    model: Callable[[], nn.Module]
    data: list[dict[str, Any]]
    strength: float
    tolerance: float = 1e-9


def exact_llama() -> nn.Module:
    """In float64 throughout: transformers computes the loss of language models in float32."""
    return llama().double()


CASES = {
    # The loss divides by num_items_in_batch; every micro-batch has another number of tokens that count.
    "honours_num_items": Case(exact_llama, texts(), 20.0),
    "honours_num_items_float32": Case(tiny_llama, texts(), 20.0, tolerance=1e-5),
    # transformers issue 47688: the argument is accepted and ignored.
    "ignores_num_items": Case(lambda: tiny_bert(dropout=0.0).double(), classified(40), 200.0),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def trained(path: Path, case: Case, cut: tuple[int, int], **given: Any) -> tuple[dict[str, Tensor], Any]:
    """Weights and trainer after five steps; gradients are not clipped, which would hide their scale."""
    size, parts = cut
    settings = {"max_steps": 5, "max_grad_norm": 0, "fam_lambda": case.strength, "fam_estimator": "closed_form"}
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    trainer = fam_trainer(path, case.model(), train_dataset=case.data, **{**settings, **sizes, **given})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ignores num_items_in_batch")
        trainer.train()
    return weights(trainer.model), trainer


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_micro_batches_do_not_matter(tmp_path: Path, case: Case, optim: str) -> None:
    results = [trained(tmp_path, case, cut, optim=optim) for cut in CUTS]
    reference, trainer = results[0]
    for other, other_trainer in results[1:]:
        assert largest_difference(reference, other) < case.tolerance
        for name in ("fam_kappa", "fam_term", "loss", "grad_norm"):
            assert logged(other_trainer, name) == pytest.approx(logged(trainer, name), rel=1e-5), name
    without, _ = trained(tmp_path, case, CUTS[0], optim=optim, fam_lambda=1e-300)
    assert largest_difference(reference, without) > 100 * case.tolerance  # so the term is large enough to be missed


@pytest.mark.parametrize("cut", CUTS[1:])
def test_last_incomplete_accumulation(tmp_path: Path, case: Case, cut: tuple[int, int]) -> None:
    """20 items in steps of 8: the third step of an epoch has half the micro-batches."""
    short = Case(case.model, case.data[:20], case.strength)
    (reference, trainer), (other, other_trainer) = (
        trained(tmp_path, short, c, optim="sgd", max_steps=7) for c in (CUTS[0], cut)
    )
    assert largest_difference(reference, other) < case.tolerance
    for name in ("fam_kappa", "loss", "grad_norm"):
        assert logged(other_trainer, name) == pytest.approx(logged(trainer, name), rel=1e-5), name


def test_logs_over_several_steps_are_means_over_steps(tmp_path: Path, case: Case) -> None:
    """Not over micro-batches: the last step of an epoch has fewer of them."""
    short = Case(case.model, case.data[:20], case.strength)
    _, every = trained(tmp_path, short, (2, 4), max_steps=6)
    _, third = trained(tmp_path, short, (2, 4), max_steps=6, logging_steps=3)
    for name in ("fam_kappa", "fam_term", "loss"):
        fine = logged(every, name)
        assert logged(third, name) == pytest.approx([sum(fine[:3]) / 3, sum(fine[3:]) / 3], rel=1e-5), name


def test_gradient_is_that_of_loss_plus_term(tmp_path: Path, case: Case) -> None:
    """The term's share of the accumulated gradient is lambda times kappa's gradient on the whole batch."""
    found = {}
    for strength in (1e-300, case.strength):
        found[strength] = gradients_of_first_step(
            tmp_path,
            case.model(),
            train_dataset=case.data,
            fam_lambda=strength,
            fam_loss_scaling="corrected",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
    head = "lm_head.weight" if "lm_head.weight" in found[case.strength] else "classifier.weight"
    term = found[case.strength][head] - found[1e-300][head]
    whole = _gradient_of_kappa(tmp_path, case, head)
    torch.testing.assert_close(term, case.strength * whole, rtol=case.tolerance, atol=case.tolerance)


def _gradient_of_kappa(path: Path, case: Case, name: str) -> Tensor:
    """From the textbook formula on the first batch of eight, without the package."""
    trainer = fam_trainer(path, case.model(), train_dataset=case.data, per_device_train_batch_size=8)
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model
    weight = dict(model.named_parameters())[name]
    seen: list[Tensor] = []
    module = model.get_submodule(name.removesuffix(".weight"))
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(**batch).logits
    phi, labels = seen[0], batch["labels"]
    if phi.dim() == 3:  # next-token prediction
        phi, logits, labels = phi[:, :-1], logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    p, squares = logits[counted].softmax(-1), phi[counted].square().sum(-1)
    mean = p @ weight
    variance = p @ weight.square().sum(-1) - mean.square().sum(-1)
    kappa = (squares * variance).mean()
    return torch.autograd.grad(kappa, weight)[0]


def test_stock_scaling_multiplies_the_gradient_by_the_micro_batches(tmp_path: Path) -> None:
    case = CASES["ignores_num_items"]
    given = {"train_dataset": case.data, "fam_lambda": case.strength, "per_device_train_batch_size": 2}
    stock, corrected = (
        gradients_of_first_step(
            tmp_path, case.model(), gradient_accumulation_steps=4, fam_loss_scaling=scaling, **given
        )
        for scaling in ("stock", "corrected")
    )
    for name, gradient in corrected.items():
        torch.testing.assert_close(stock[name], 4 * gradient, rtol=1e-9, atol=1e-15)


def test_stock_scaling_logs_kappa_in_the_units_of_its_loss(tmp_path: Path) -> None:
    """Both are sums over micro-batches then."""
    case = CASES["ignores_num_items"]
    _, stock = trained(tmp_path, case, (2, 4), fam_loss_scaling="stock", max_steps=1)
    _, corrected = trained(tmp_path, case, (2, 4), max_steps=1)
    for name in ("loss", "fam_kappa", "fam_term"):
        assert logged(stock, name)[0] == pytest.approx(4 * logged(corrected, name)[0], rel=1e-5), name


def test_nothing_is_corrected_where_the_model_honours_the_argument(tmp_path: Path) -> None:
    case = CASES["honours_num_items"]
    trainer = fam_trainer(tmp_path, case.model(), train_dataset=case.data, gradient_accumulation_steps=2, max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()


def test_correction_is_announced_once(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, tiny_bert(), gradient_accumulation_steps=2, max_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    texts_ = [str(w.message) for w in caught if "num_items_in_batch" in str(w.message)]
    assert len(texts_) == 1
    assert "BertForSequenceClassification" in texts_[0] and 'fam_loss_scaling="stock"' in texts_[0]


def test_no_correction_and_no_warning_without_accumulation(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, tiny_bert(), max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()


def test_first_micro_batch_without_labels_does_not_look_like_ignoring(tmp_path: Path) -> None:
    """A sum over no tokens is zero whatever it is divided by."""
    case = CASES["honours_num_items"]
    trainer = fam_trainer(tmp_path, case.model(), train_dataset=case.data, per_device_train_batch_size=2)
    order = [item for batch in trainer.get_train_dataloader() for item in batch["input_ids"].tolist()]
    silent = [
        {**item, "labels": [-100] * len(item["labels"])} if item["input_ids"] in order[:2] else item
        for item in case.data
    ]
    (reference, _), (other, _) = (
        trained(tmp_path, Case(case.model, silent, case.strength), cut, optim="sgd", max_steps=2)
        for cut in ((8, 1), (2, 4))
    )
    assert largest_difference(reference, other) < 1e-9


def test_a_loss_with_a_random_part_is_seen_to_ignore_the_argument(tmp_path: Path) -> None:
    """Mixup, say, draws in compute_loss, in evaluation mode as well; two looks draw the same."""

    class Mixing(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
            share = torch.rand(())
            labels = inputs["labels"]
            logits = model(input_ids=inputs["input_ids"]).logits
            mixed = [nn.functional.cross_entropy(logits, y) for y in (labels, labels.roll(1))]
            return share * mixed[0] + (1 - share) * mixed[1]

    class FAMMixing(FAMMixin, Mixing):
        pass

    args = arguments(tmp_path, fam_lambda=1e-9, gradient_accumulation_steps=2, max_steps=1)
    trainer = FAMMixing(model=tiny_bert(), args=args, train_dataset=classified())
    with pytest.warns(UserWarning, match="ignores num_items_in_batch"):
        trainer.train()


def test_a_loss_that_is_nan_without_labels_cannot_tell(tmp_path: Path) -> None:
    """The mean over no tokens is NaN, which equals nothing, not even itself; the next batch tells."""
    torch.manual_seed(0)
    config = tiny_bert().config
    model = BertForTokenClassification(config)
    data = [{"input_ids": [3, 4, 5 + k], "labels": [k % 3] * 3} for k in range(8)]
    trainer = fam_trainer(tmp_path, model, train_dataset=data, per_device_train_batch_size=1)
    first = next(iter(trainer.get_train_dataloader()))["input_ids"][0].tolist()
    data = [{**d, "labels": [-100] * 3} if d["input_ids"] == first else d for d in data]
    given = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = fam_trainer(tmp_path, model, train_dataset=data, fam_lambda=1e-9, **given)
    with pytest.warns(UserWarning, match="BertForTokenClassification ignores num_items_in_batch"):
        trainer.train()


def test_a_model_that_has_a_loss_in_training_mode_alone(tmp_path: Path) -> None:
    class InTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(4, 3)

        def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
            logits = self.head(self.embedding(input_ids).mean(1))
            return {"loss": nn.functional.cross_entropy(logits, labels)} if self.training else {"logits": logits}

    trainer = fam_trainer(tmp_path, InTraining(), gradient_accumulation_steps=2, max_steps=1)
    with pytest.warns(UserWarning, match="ignores num_items_in_batch"):
        trainer.train()


def test_loss_function_that_ignores_the_argument_is_warned_about(tmp_path: Path) -> None:
    def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels)

    trainer = fam_trainer(tmp_path, compute_loss_func=mean_loss, gradient_accumulation_steps=2, max_steps=1)
    with pytest.warns(UserWarning, match="compute_loss_func ignores num_items_in_batch.*divide the summed loss"):
        trainer.train()
