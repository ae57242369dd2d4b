"""Seq2SeqTrainer, a compute_loss_func, and a compute_loss that calls the model twice (R-Drop)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration, Trainer

from hf_fam import FAMArguments, FAMCallback, FAMMixin, FAMSeq2SeqTrainer
from support.others import assert_unbiased, draws, logged
from support.tiny import PLAIN, assert_same_weights, classified, hook_count, plain_arguments, texts, tiny_bert


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0))


def seq2seq(path: Path, kind: type, callbacks: Any = (), **own: Any) -> Any:
    arguments = Seq2SeqTrainingArguments(output_dir=str(path), **{**PLAIN, "predict_with_generate": True})
    model = own.pop("model", None) or t5()
    data = texts(12)
    return kind(model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[*callbacks], **own)


def test_seq2seq_trainer(tmp_path: Path) -> None:
    plain = seq2seq(tmp_path, Seq2SeqTrainer)
    off = seq2seq(tmp_path, FAMSeq2SeqTrainer, fam_args=FAMArguments(fam_lambda=0.0))
    unhooked = seq2seq(tmp_path, Seq2SeqTrainer, [FAMCallback(0.0)])
    mixin = seq2seq(tmp_path, FAMSeq2SeqTrainer, fam_args=FAMArguments(fam_lambda=0.1))
    callback = seq2seq(tmp_path, Seq2SeqTrainer, [FAMCallback(0.1)])
    for trainer in (plain, off, unhooked, mixin, callback):
        trainer.train()
    for trainer in (off, unhooked):
        assert_same_weights(plain.model, trainer.model)
    for trainer in (mixin, callback):
        assert logged(trainer, "loss")[0] == logged(plain, "loss")[0]
        assert logged(trainer, "loss")[1] != logged(plain, "loss")[1]
        assert hook_count(trainer.model) == 0
    assert logged(callback, "fam_kappa") == pytest.approx(logged(mixin, "fam_kappa"), rel=1e-4)
    test = texts(4)
    stock = seq2seq(tmp_path, Seq2SeqTrainer, model=mixin.model)
    found, expected = (trainer.predict(test, max_new_tokens=3) for trainer in (mixin, stock))
    assert len(found.predictions) == 4
    assert (found.predictions == expected.predictions).all()
    assert found.metrics["test_loss"] == expected.metrics["test_loss"]


def test_first_kappa_of_seq2seq_is_that_of_the_dense_hessian(tmp_path: Path) -> None:
    trainer = seq2seq(tmp_path, FAMSeq2SeqTrainer, fam_args=FAMArguments(fam_lambda=0.0))
    trainer.model.lm_head.weight = nn.Parameter(trainer.model.lm_head.weight.detach().clone())  # untied
    exact, dense = (draws(trainer, trainer.model, "lm_head", way).item() for way in ("closed_form", "dense"))
    assert exact == pytest.approx(dense, rel=1e-4)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def weighted_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Classes count differently; the mean is over the items of the whole step."""
    total = F.cross_entropy(outputs.logits, labels, weight=WEIGHTS, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class TwoPassTrainer(Trainer):
    """R-Drop: two passes with different dropout, and the divergence of their predictions."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        one, two = model(**inputs), model(**inputs)
        log_p, log_q = one.logits.log_softmax(-1), two.logits.log_softmax(-1)
        divergence = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        divergence = divergence + F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        loss = (one.loss + two.loss) / 2 + 2.0 * divergence
        return (loss, one) if return_outputs else loss


class FAMPlainTrainer(FAMMixin, Trainer):
    """FAMTrainer, written out."""


class FAMTwoPassTrainer(FAMMixin, TwoPassTrainer):
    """What the documentation tells users to write."""


def trainer_of(path: Path, kind: type, **own: Any) -> Any:
    data = classified()
    model = tiny_bert(initializer_range=0.5, hidden_size=8, intermediate_size=8)
    return kind(
        model=model, args=plain_arguments(path, max_steps=2), train_dataset=data, eval_dataset=classified(8), **own
    )


@pytest.mark.parametrize("way", ["loss function", "two passes"])
def test_own_losses(tmp_path: Path, way: str) -> None:
    stock, kind = (Trainer, FAMPlainTrainer) if way == "loss function" else (TwoPassTrainer, FAMTwoPassTrainer)
    own = {"compute_loss_func": weighted_loss} if way == "loss function" else {}
    plain = trainer_of(tmp_path, stock, **own)
    off = trainer_of(tmp_path, kind, fam_args=FAMArguments(fam_lambda=0.0), **own)
    on = trainer_of(tmp_path, kind, fam_args=FAMArguments(fam_lambda=1.0), **own)
    assert_unbiased(off, off.model, "classifier")
    for trainer in (plain, off):
        torch.manual_seed(1)
        trainer.train()
    assert_same_weights(plain.model, off.model)
    torch.manual_seed(1)
    if way == "loss function":
        on.train()
        assert on.relative_flatness.estimator == "closed_form"
    else:
        with pytest.warns(UserWarning, match="the head is called 2 times in a forward pass and the loss couples"):
            on.train()
    assert logged(on, "loss")[0] == logged(plain, "loss")[0]
    assert logged(on, "loss")[1] != logged(plain, "loss")[1]
    assert on.evaluate()["eval_loss"] > 0
    assert on.predict(classified(4)).predictions.shape == (4, 3)


def test_callback_with_class_weights_and_with_two_passes(tmp_path: Path) -> None:
    """Class weights are what it can read off the gradient; the divergence of two passes is not."""
    callback = trainer_of(tmp_path, Trainer, compute_loss_func=weighted_loss, callbacks=[FAMCallback(1.0)])
    mixin = trainer_of(
        tmp_path, FAMPlainTrainer, compute_loss_func=weighted_loss, fam_args=FAMArguments(fam_lambda=1.0)
    )
    for trainer in (callback, mixin):
        torch.manual_seed(1)
        trainer.train()
    assert logged(callback, "fam_kappa") == pytest.approx(logged(mixin, "fam_kappa"), rel=1e-4)
    assert logged(callback, "loss") == pytest.approx(logged(mixin, "loss"), rel=1e-5)
    with pytest.warns(UserWarning, match="is not that of softmax cross-entropy with hard labels"):
        trainer_of(tmp_path, TwoPassTrainer, callbacks=[FAMCallback(1.0)]).train()
