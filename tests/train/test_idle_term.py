"""A term that does nothing is said once, with a remedy that works; others are not warned about."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_fam import FAMTrainer, FAMTrainingArguments
from hf_fam.train.idle_term import IdleTermWatch

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LARGE = 4200  # a vocabulary with the default strength of large ones


def train(
    folder: Path, model: torch.nn.Module, data: list[dict[str, object]], **given: object
) -> tuple[list[str], list]:
    """The warnings about the term, and the logged ratios, of 30 steps."""
    settings = {"max_steps": 30, "logging_steps": 5, "logging_first_step": True, **given}
    args = FAMTrainingArguments(str(folder), report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
                                per_device_train_batch_size=4, **settings)  # fmt: skip
    trainer = FAMTrainer(model=model, args=args, train_dataset=data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(w.message) for w in caught if "the flatness term does nothing" in str(w.message)]
    return said, [logs["fam_grad_ratio"] for logs in trainer.state.log_history if "fam_grad_ratio" in logs]


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=LARGE, max_position_embeddings=16, **SIZES))


def sentences() -> list[dict[str, object]]:
    return [{"input_ids": (ids := [k, k + 1, k + 2, 3]), "labels": ids} for k in range(8)]


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **SIZES))
    torch.nn.init.normal_(model.classifier.weight)
    return model


def texts() -> list[dict[str, object]]:
    return [{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)]


def test_a_language_model_by_default(tmp_path: Path) -> None:
    """The case of the issue: it is said once, and the proposed strength does something."""
    said, ratios = train(tmp_path, language_model(), sentences())
    assert max(ratios) < 1e-4
    (message,) = said
    proposed = float(re.search(r"to about (\S+) for a hundredth", message).group(1))
    assert "'lm_head'" in message and "fam_layer" in message and "\n" not in message
    again, ratios = train(tmp_path, language_model(), sentences(), fam_lambda=proposed)
    assert again == [] and max(ratios) > 1e-3


def test_a_term_that_acts_and_plain_training(tmp_path: Path) -> None:
    said, ratios = train(tmp_path, classifier(), texts(), fam_lambda=0.01)
    assert said == [] and max(ratios) > 1e-3
    assert train(tmp_path, classifier(), texts(), fam_lambda=0.0) == ([], [])


def test_a_warm_up_is_waited_for(tmp_path: Path) -> None:
    assert train(tmp_path, classifier(), texts(), fam_lambda=1e-7, fam_warmup_steps=30)[0] == []
    said, _ = train(tmp_path, classifier(), texts(), fam_lambda=1e-7)
    assert len(said) == 1


def test_a_single_step_says_nothing(tmp_path: Path) -> None:
    assert train(tmp_path, language_model(), sentences(), max_steps=2)[0] == []


@pytest.mark.parametrize(
    ("ratios", "count"),
    [([1e-9] * 9, 1), ([1e-9, 1e-9], 1), ([1e-9], 0), ([1e-3, 1e-9, 1e-9, 1e-9], 0), ([1e-9, 1e-9, 1e-3, 1e-9], 0),
     ([0.0] * 3, 1), ([math.nan] * 5, 0), ([], 0)],
)  # fmt: skip
def test_when_it_is_said(ratios: list[float], count: int) -> None:
    watch = IdleTermWatch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for ratio in ratios:
            watch.observe("head", ratio, strength=0.1, full_strength=0.1)
        watch.end()
        watch.end()
    assert len(caught) == count
