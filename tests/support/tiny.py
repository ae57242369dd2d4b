"""Tiny random models, data and arguments, so that a test trains in a fraction of a second."""

from __future__ import annotations

import copy
import gc
import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_fam import FAMArguments, FAMTrainer, FAMTrainingArguments

# Every training begins with a full garbage collection: what the imports left behind need not be looked at each time.
gc.freeze()

VOCABULARY = 50


_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def tiny_bert(seed: int = 0, dropout: float = 0.1, **config: Any) -> BertForSequenceClassification:
    """A BERT classifier of two blocks and three classes; its loss ignores ``num_items_in_batch``."""
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(
        BertConfig(**{**_SIZES, "num_hidden_layers": 2, "num_labels": 3, **rates, **config})
    )


def tiny_llama(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A causal language model of one block, without dropout; its loss honours ``num_items_in_batch``."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, "num_hidden_layers": 1, **config}))


def classified(count: int = 24, classes: int = 3, length: int = 5) -> list[dict[str, Any]]:
    """Random token sequences with random labels."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (count, length), generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return [{"input_ids": t.tolist(), "labels": int(y)} for t, y in zip(tokens, labels, strict=True)]


def texts(count: int = 40, length: int = 6) -> list[dict[str, Any]]:
    """Random token sequences, each with another number of tokens that count."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, VOCABULARY, (count, length), generator=generator).tolist()
    return [
        {"input_ids": row, "labels": [t if k >= n % (length - 1) else -100 for k, t in enumerate(row)]}
        for n, row in enumerate(tokens)
    ]


PLAIN: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def arguments(output_dir: Path, **given: Any) -> FAMTrainingArguments:
    """Arguments of a short silent training that logs every step."""
    return FAMTrainingArguments(output_dir=str(output_dir), **{**PLAIN, **given})


def plain_arguments(output_dir: Path, **given: Any) -> TrainingArguments:
    """The same without FAM."""
    return TrainingArguments(output_dir=str(output_dir), **{**PLAIN, **given})


def fam_trainer(output_dir: Path, model: nn.Module | None = None, **given: Any) -> FAMTrainer:
    """A FAMTrainer on `tiny_bert` and `classified`; keywords of the Trainer and of its arguments alike."""
    host = {k: given.pop(k) for k in list(given) if k in _OF_THE_TRAINER}
    host.setdefault("train_dataset", classified())
    if "model_init" not in host:
        model = tiny_bert() if model is None else model
    return FAMTrainer(model=model, args=arguments(output_dir, **given), **host)


_OF_THE_TRAINER = (
    "train_dataset",
    "eval_dataset",
    "compute_metrics",
    "compute_loss_func",
    "model_init",
    "callbacks",
    "data_collator",
)


def set_seeds(seed: int) -> None:
    """Every random state that a training may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states() -> str:
    """A fingerprint of every random state."""
    with np.printoptions(threshold=10**6):
        states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()
    return hashlib.sha256(repr(states).encode()).hexdigest()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    others = other.state_dict()
    different = [name for name, tensor in one.state_dict().items() if not torch.equal(tensor, others[name])]
    assert not different, different


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all entries of all tensors."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def logged(trainer: Trainer, name: str) -> list[float]:
    """What was logged under a name, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def history(trainer: Trainer) -> list[dict[str, float]]:
    """All that was logged except how long things took."""
    timed = ("runtime", "per_second")
    return [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in trainer.state.log_history]


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def gradients_of_first_step(output_dir: Path, model: nn.Module, **given: Any) -> dict[str, Tensor]:
    """What the optimizer gets in the first step; the model stays as it is."""
    recorder = GradientRecorder()
    fam_trainer(output_dir, copy.deepcopy(model), callbacks=[recorder], max_grad_norm=0, max_steps=1, **given).train()
    return recorder.steps[0]


def hook_count(model: nn.Module) -> int:
    """Hooks on all modules, before and after their forward pass."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


__all__ = [
    "VOCABULARY",
    "FAMArguments",
    "GradientRecorder",
    "arguments",
    "assert_same_weights",
    "classified",
    "fam_trainer",
    "gradients_of_first_step",
    "history",
    "hook_count",
    "largest_difference",
    "logged",
    "plain_arguments",
    "random_states",
    "set_seeds",
    "texts",
    "tiny_bert",
    "tiny_llama",
    "weights",
]
