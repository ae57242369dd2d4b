"""Fine-tuning of all-MiniLM-L6-v2 with the Trainer: all of it, its upper blocks, LoRA, pooler and head, or the head."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, set_seed

from ..embeddings import minilm_path, tokenizer
from ..methods import Method
from ..tasks import Examples, Split
from .loop import PARTS
from .outcome import Outcome
from .with_trainer import arguments_for, train_and_predict


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-4
    epochs: int = 10
    batch_size: int = 16
    weight_decay: float = 0.0
    warmup: float = 0.1
    max_length: int = 64
    trainable: str = "all"  # or "classifier", or with the pooler "head", "blocks 2" (upper ones), "lora 8" (its rank)
    bf16: bool = True  # autocast: half the time on processors that have it


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """The pooler and a new head on the first token; a learning rate that falls linearly."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=split.classes)
    unfreeze(model, settings.trainable)
    data = {part: tokenised(getattr(split, part), settings.max_length) for part in PARTS}
    keep_words(model, data)
    shortest_first = {
        part: np.argsort([len(e["input_ids"]) for e in d], kind="stable") for part, d in data.items()
    }  # so that little is padded
    arguments = arguments_for(settings, seed, bf16=settings.bf16, train_sampling_strategy="group_by_length")
    collator = DataCollatorWithPadding(tokenizer())
    return train_and_predict(method, model, data, arguments, shortest_first, data_collator=collator)


def keep_words(model: nn.Module, data: dict[str, list[dict[str, Any]]]) -> None:
    """Drop the embeddings of words that do not occur, and number the others anew: a fifth of a step's time.

    They get no gradient, so without weight decay they would stay as they are: training is the same.
    """
    embeddings = model.get_input_embeddings()
    used = {0, *itertools.chain.from_iterable(e["input_ids"] for part in data.values() for e in part)}  # 0: padding
    numbers = {word: k for k, word in enumerate(sorted(used))}
    with torch.no_grad():
        kept = embeddings.weight[sorted(used)].clone()
    embeddings.weight = nn.Parameter(kept, requires_grad=embeddings.weight.requires_grad)
    embeddings.num_embeddings = model.config.vocab_size = len(used)
    for example in itertools.chain.from_iterable(data.values()):
        example["input_ids"] = [numbers[word] for word in example["input_ids"]]


def unfreeze(model: nn.Module, trainable: str) -> None:
    """Leave trainable what the setting says; the classifier always is."""
    if trainable == "all":
        return
    kind, _, number = trainable.partition(" ")
    if kind == "lora":
        import peft

        rank = int(number)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
        peft.inject_adapter_in_model(config, model)
    blocks = len(model.bert.encoder.layer)
    above = ["classifier"] if kind == "classifier" else ["classifier", "bert.pooler", "lora_"]
    if kind == "blocks":
        above += [f"bert.encoder.layer.{k}." for k in range(blocks - int(number), blocks)]
    elif kind not in ("classifier", "head", "lora"):
        raise ValueError(f"trainable={trainable!r}: give 'all', 'classifier', 'head', 'blocks N' or 'lora RANK'.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in above))


def tokenised(examples: Examples, max_length: int) -> list[dict[str, Any]]:
    columns = [list(column) for column in zip(*examples.inputs, strict=True)]
    encoded = tokenizer()(*columns, truncation=True, max_length=max_length)
    return [
        {"input_ids": ids, "token_type_ids": types, "attention_mask": mask, "labels": int(label)}
        for ids, types, mask, label in zip(
            encoded["input_ids"], encoded["token_type_ids"], encoded["attention_mask"], examples.labels, strict=True
        )
    ]
