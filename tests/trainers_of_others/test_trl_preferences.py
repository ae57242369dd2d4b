"""TRL's DPOTrainer and RewardTrainer, whose losses couple the two sides of a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed")
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from hf_fam import FAMArguments, FAMCallback, FAMMixin
from support.languages import preferences, tiny_tokenizer
from support.others import assert_unbiased, logged
from support.tiny import PLAIN, assert_same_weights, tiny_llama

# Half the width of the other tiny models: dense Hessians of the head are taken.
SMALL: dict[str, Any] = {"hidden_size": 8, "attn_implementation": "eager", "pad_token_id": 0, "initializer_range": 0.3}


class FAMDPOTrainer(FAMMixin, DPOTrainer):
    """What the documentation tells users to write."""


class FAMRewardTrainer(FAMMixin, RewardTrainer):
    """What the documentation tells users to write."""


def reward_model() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(**{**SMALL, **sizes, "num_labels": 1}))


def host(path: Path, kind: str, peft: bool = False, **given: Any) -> dict[str, Any]:
    options = {
        **PLAIN,
        "max_steps": 2,
        "bf16": False,
        "gradient_checkpointing": False,
        "output_dir": str(path),
        **given,
    }
    dpo = kind == "dpo"
    other = {"ref_model": tiny_llama(1, **SMALL)} if dpo and not peft else {}
    return {
        "model": tiny_llama(**SMALL) if dpo else reward_model(),
        "args": (DPOConfig if dpo else RewardConfig)(**options),
        "train_dataset": Dataset.from_dict(preferences()),
        "eval_dataset": Dataset.from_dict(preferences()),
        "processing_class": tiny_tokenizer(),
        **other,
        **({"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])} if peft else {}),
    }


PAIRS = {"dpo": (DPOTrainer, FAMDPOTrainer), "reward": (RewardTrainer, FAMRewardTrainer)}


@pytest.mark.parametrize(
    ("kind", "layer"), [("dpo", "lm_head"), ("reward", "score"), ("reward", "model.layers.0.mlp.down_proj")]
)
def test_probes_see_the_coupling_of_a_pair(tmp_path: Path, kind: str, layer: str) -> None:
    trainer = PAIRS[kind][1](**host(tmp_path, kind), fam_args=FAMArguments(fam_lambda=0.0))
    assert_unbiased(trainer, trainer.model, layer)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_the_heads_closed_form_is_rejected_and_probes_take_over(tmp_path: Path, kind: str, peft: bool) -> None:
    stock, fam = PAIRS[kind]
    plain = stock(**host(tmp_path, kind, peft))
    off = fam(**host(tmp_path, kind, peft), fam_args=FAMArguments(fam_lambda=0.0))
    on = fam(**host(tmp_path, kind, peft), fam_args=FAMArguments(fam_lambda=1.0))
    plain.train()
    off.train()
    with pytest.warns(UserWarning, match="closed form does not hold for this loss"):
        on.train()
    assert_same_weights(plain.model, off.model)
    assert on.relative_flatness.estimator == "hessian"
    assert on.relative_flatness.method.coupling_finder.coupling.value == "batch"
    losses, expected = logged(on, "loss"), logged(plain, "loss")
    assert losses[0] == pytest.approx(expected[0], rel=1e-5)
    # The first step of Adam depends on the signs of the gradient alone, so the losses after it may agree.
    gradients, without = logged(on, "grad_norm"), logged(plain, "grad_norm")
    assert gradients[0] != pytest.approx(without[0], rel=1e-4)
    assert on.evaluate()["eval_loss"] > 0


def test_callback_warns_that_a_preference_loss_is_not_for_it(tmp_path: Path) -> None:
    trainer = DPOTrainer(**host(tmp_path, "dpo"), callbacks=[FAMCallback(0.1)])
    with pytest.warns(UserWarning, match="is not that of softmax cross-entropy with hard labels"):
        trainer.train()


def test_callback_refuses_a_head_of_one_output(tmp_path: Path) -> None:
    trainer = RewardTrainer(**host(tmp_path, "reward"), callbacks=[FAMCallback(0.1)])
    with pytest.raises(ValueError, match="layer 'score' has one output .* Use RelativeFlatness or FAMMixin"):
        trainer.train()
