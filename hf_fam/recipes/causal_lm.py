"""Fine-tune a language model on texts, prompts with completions, or conversations; with LoRA adapters or as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from datasets import DatasetDict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, EvalPrediction

from ..measure.classification_metrics import calibration_error
from ..measure.data import IGNORED
from ..train.training_args import FAMTrainingArguments
from .common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from .common.data import TRAIN, load_splits, require_values
from .common.models import load_model, load_preprocessing
from .common.run import Run
from .common.training import finetune, prepare_run


@dataclass
class LanguageArguments(DataArguments):
    """Rows with `messages` (a conversation), with `prompt` and `completion`, or with `text`."""

    max_seq_length: int = field(default=512, metadata={"help": "Cut texts to at most N tokens."})
    text_column_name: str = field(default="text", metadata={"help": "Column of plain texts."})


@dataclass
class LoraArguments:
    """Settings of LoRA adapters, named as in PEFT."""

    use_lora: bool = field(default=True, metadata={"help": "Train LoRA adapters. False trains all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, which PEFT divides by the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the inputs of the adapters."})
    lora_target_modules: Optional[list[str]] = field(  # noqa: UP045
        default=None, metadata={"help": "Names of the layers with adapters. Defaults to PEFT's choice for the model."}
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe and return its metrics.

    Args:
        argv: the command line without the script; this process's own by default.

    Raises:
        ValueError: arguments or data cannot be used; the message says why.
    """
    return finetune(make_run(argv))


def make_run(argv: Sequence[str] | None = None, methods: Sequence[str] = ()) -> Run:
    """Return the prepared run.

    Args:
        argv: the command line without the script; this process's own by default.
        methods: names of several methods that a comparison trains by; it makes its own splits.

    Raises:
        ValueError: arguments or data cannot be used; the message says why.
    """
    argument_types = (ModelArguments, LanguageArguments, LoraArguments, MethodArguments, FAMTrainingArguments)
    model_args, data, lora, method, args = parse(argument_types, argv, methods)
    data.is_whole = bool(methods)
    if model_args.freeze_backbone:
        raise ValueError("freeze_backbone: a language model has no head of its own to train; LoRA trains few weights.")
    if model_args.from_scratch and lora.use_lora:
        raise ValueError("from_scratch with adapters would train them on random weights: add --use_lora False.")
    prepare_run(args)
    with args.main_process_first():
        splits = load_splits(data, model_args, args.seed)
    for column in text_columns(splits[TRAIN].column_names, data.text_column_name):
        require_values(splits, column)
    tokenizer = load_preprocessing(model_args, AutoTokenizer, **model_args.tokenizer_options())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def make_model() -> Any:
        model = load_model(model_args, AutoModelForCausalLM)
        return add_lora(model, lora) if lora.use_lora else model

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        ids, prompt_length = tokenize(tokenizer, row, data.text_column_name)
        ids = ids[: data.max_seq_length]
        labels = [IGNORED] * prompt_length + ids[prompt_length:]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    with args.main_process_first():
        splits = DatasetDict(
            {
                k: split.map(prepare, remove_columns=split.column_names).filter(lambda row: has_labels(row["labels"]))
                for k, split in splits.items()
            }
        )
    for name, split in splits.items():
        if not len(split):
            raise ValueError(
                f"no text of the {name} data has a token to learn within max_seq_length={data.max_seq_length}: raise "
                "it, or give shorter prompts."
            )
    return Run(
        model_args, data, method, args, make_model, splits, tokenizer, DataCollatorForSeq2Seq(tokenizer, padding=True),
        token_metrics,
        task="text-generation", preprocess_logits=reduce_logits,
    )  # fmt: skip


def add_lora(model: Any, lora: LoraArguments) -> Any:
    """Return the model with LoRA adapters."""
    from peft import LoraConfig, get_peft_model  # needed for adapters only

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.lora_target_modules,
    )
    return get_peft_model(model, config)


def text_columns(columns: Sequence[str], text_column: str) -> tuple[str, ...]:
    """Return the columns that `tokenize` reads.

    Args:
        columns: all columns of the data.
        text_column: column of plain texts, for data that has neither conversations nor prompts.
    """
    if "messages" in columns:
        return ("messages",)
    return ("prompt", "completion") if {"prompt", "completion"} <= {*columns} else (text_column,)


def tokenize(tokenizer: Any, row: dict[str, Any], text_column: str) -> tuple[list[int], int]:
    """Return the tokens of a row, and the length of its prompt, which is not learned.

    Raises:
        ValueError: the row has none of the known columns.
    """
    if "messages" in row:
        return list(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)), 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if "prompt" in row and "completion" in row:
        prompt = tokenizer(row["prompt"])["input_ids"]
        return [*prompt, *tokenizer(row["completion"], add_special_tokens=False)["input_ids"], *end], len(prompt)
    if text_column in row:
        return [*tokenizer(row[text_column])["input_ids"], *end], 0
    present = ", ".join(map(repr, row))
    raise ValueError(f"columns {present}: give 'messages', 'prompt' and 'completion', or text_column_name.")


def has_labels(labels: Sequence[int]) -> bool:
    """Return True if any token is predicted; the first one never is."""
    return any(label != IGNORED for label in labels[1:])


def reduce_logits(logits: Any, labels: Tensor) -> Tensor:
    """Return three numbers a position, as all logits would take gigabytes.

    Returns:
        Confidence, predicted token and log-probability of the label, shape ``(items, positions, 3)``.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    log_p = logits.float().log_softmax(-1)
    following = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)
    confidence, predicted = log_p.max(-1)
    of_label = log_p.gather(-1, following.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.stack([confidence.exp(), predicted.to(log_p.dtype), of_label], dim=-1)


def token_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Return accuracy, NLL, perplexity and calibration error of the labeled tokens.

    Args:
        evaluated: what `reduce_logits` returns, and labels.
    """
    reduced, labels = np.asarray(evaluated.predictions)[:, :-1], np.asarray(evaluated.label_ids)[:, 1:]
    is_labeled = labels != IGNORED
    confidence, predicted, log_p = (reduced[..., k][is_labeled] for k in range(3))
    is_right = predicted == labels[is_labeled]
    return {
        "accuracy": float(is_right.mean()),
        "nll": float(-log_p.mean()),
        "perplexity": float(np.exp(-log_p.mean())),
        "ece": calibration_error(confidence, is_right),
    }
