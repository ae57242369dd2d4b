"""TRL's SFTTrainer, whose head is fused with the loss: mixin and callback, packing, completions, LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed")
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from hf_fam import FAMArguments, FAMCallback, FAMMixin
from hf_fam.layer.fused_head import token_log_probabilities
from support.languages import completions, sentences, tiny_tokenizer
from support.others import draws, logged
from support.tiny import PLAIN, assert_same_weights, hook_count, tiny_llama, weights


class FAMSFTTrainer(FAMMixin, SFTTrainer):
    """What the documentation tells users to write."""


WAYS: dict[str, dict[str, Any]] = {
    "text": {},
    "packed": {"packing": True, "max_length": 16},
    "wrapped": {"packing": True, "max_length": 16, "packing_strategy": "wrapped"},
    "dft": {"loss_type": "dft"},
    "accumulated": {"gradient_accumulation_steps": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "completions": {"completion_only_loss": True},
}


def host(path: Path, way: str = "text", peft: bool = False, **given: Any) -> dict[str, Any]:
    options = {**PLAIN, "max_steps": 2, "bf16": False, "gradient_checkpointing": False, **WAYS[way], **given}
    data = Dataset.from_dict(completions() if way == "completions" else sentences())
    return {
        "model": tiny_llama(tie_word_embeddings=True, pad_token_id=0),
        "args": SFTConfig(output_dir=str(path), **options),
        "train_dataset": data,
        "eval_dataset": data,
        "processing_class": tiny_tokenizer(),
        **({"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])} if peft else {}),
    }


def trained(
    path: Path, kind: str, strength: float = 0.1, fam: dict[str, Any] | None = None, **given: Any
) -> SFTTrainer:
    if kind == "mixin":
        trainer = FAMSFTTrainer(**host(path, **given), fam_args=FAMArguments(fam_lambda=strength, **fam or {}))
    else:
        callbacks = [FAMCallback(strength)] if kind == "callback" else []
        trainer = SFTTrainer(**host(path, **given), callbacks=callbacks)
    torch.manual_seed(3)
    trainer.train()
    return trainer


@pytest.mark.parametrize("way", WAYS)
def test_mixin_and_callback_take_the_same_steps(tmp_path: Path, way: str) -> None:
    plain, mixin, callback = (trained(tmp_path, kind, way=way) for kind in ("plain", "mixin", "callback"))
    for fam in (mixin, callback):
        for name in ("loss", "entropy", "mean_token_accuracy"):
            assert logged(fam, name)[0] == pytest.approx(logged(plain, name)[0], rel=1e-5)
        assert logged(fam, "loss")[1] != pytest.approx(logged(plain, "loss")[1], rel=1e-4), "the term moves the weights"
        assert hook_count(fam.model) == hook_count(plain.model)
    assert logged(callback, "fam_kappa") == pytest.approx(logged(mixin, "fam_kappa"), rel=1e-5)
    for name, weight in weights(mixin.model).items():
        torch.testing.assert_close(weights(callback.model)[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mixin", "callback"])
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_without_strength_it_is_the_stock_trainer_bit_for_bit(tmp_path: Path, kind: str, peft: bool) -> None:
    plain, fam = trained(tmp_path, "plain", peft=peft), trained(tmp_path, kind, strength=0.0, peft=peft)
    assert_same_weights(plain.model, fam.model)
    assert logged(plain, "loss") == logged(fam, "loss")


def test_first_kappa_is_that_of_the_dense_hessian(tmp_path: Path) -> None:
    arguments = {**host(tmp_path, "completions"), "model": tiny_llama(pad_token_id=0)}
    trainer = FAMSFTTrainer(**arguments, fam_args=FAMArguments(fam_lambda=0.0))
    exact, dense = (draws(trainer, trainer.model, "lm_head", way).item() for way in ("closed_form", "dense"))
    assert exact == pytest.approx(dense, rel=1e-4)


def test_first_looks_leave_no_trace_in_the_metrics(tmp_path: Path) -> None:
    """At the first batch the mixin computes the loss more than once; TRL counts tokens and entropies there."""
    plain = trained(tmp_path, "plain", way="accumulated")
    for fam in ({}, {"fam_estimator": "perturbation"}):
        mixin = trained(tmp_path, "mixin", strength=1e-12, way="accumulated", fam=fam)
        assert logged(mixin, "num_tokens") == logged(plain, "num_tokens")
        evaluated, expected = mixin.evaluate(), plain.evaluate()
        for name in ("eval_num_tokens", "eval_entropy", "eval_mean_token_accuracy"):
            assert evaluated[name] == pytest.approx(expected[name], rel=1e-4), name
        assert logged(mixin, "entropy") == pytest.approx(logged(plain, "entropy"), rel=1e-4)


@pytest.mark.parametrize("kind", ["mixin", "callback"])
def test_lora_trains_the_adapters_alone(tmp_path: Path, kind: str) -> None:
    plain, fam = trained(tmp_path, "plain", peft=True), trained(tmp_path, kind, strength=10.0, peft=True)
    before, after = weights(plain.model), weights(fam.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora" in name for name in changed)


def test_hidden_layer(tmp_path: Path) -> None:
    fam = trained(tmp_path, "mixin", strength=100.0, fam={"fam_layer": "representation"})
    assert fam.relative_flatness.estimator == "gauss_newton"
    assert all(kappa > 0 for kappa in logged(fam, "fam_kappa"))
    assert logged(fam, "loss")[1] != logged(trained(tmp_path, "plain"), "loss")[1]


def test_evaluation_takes_the_trainers_own_path(tmp_path: Path) -> None:
    fam = trained(tmp_path, "mixin")
    stock = SFTTrainer(**{**host(tmp_path), "model": fam.model})
    assert fam.evaluate()["eval_loss"] == stock.evaluate()["eval_loss"]
    ids = torch.tensor([[4, 5, 6]])
    assert fam.model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 5)


def test_another_temperature_is_refused(tmp_path: Path) -> None:
    arguments = host(tmp_path)
    arguments["args"].temperature = 0.7  # as GRPO's arguments have it
    with pytest.raises(ValueError, match=r"temperature=0\.7: .* set it to 1\.0"):
        FAMSFTTrainer(**arguments, fam_args=FAMArguments(fam_lambda=0.1))


def test_every_number_of_the_fused_head() -> None:
    """Against TRL's own, ignored labels and the mean included."""
    ids = torch.randint(3, 50, (2, 7))
    labels = ids.clone()
    labels[0, :4] = -100
    model = tiny_llama()
    names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    add_fused_lm_head(model, outputs=names)
    expected = model(input_ids=ids, labels=labels, fused_lm_head=True)
    for kwargs in ({"labels": labels}, {"shift_labels": labels[:, 1:]}):
        logits = model(input_ids=ids).logits
        logits = logits[:, :-1] if "shift_labels" in kwargs else logits
        found = token_log_probabilities(logits, **kwargs)
        for name in (*names, "loss", "label_mask"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
