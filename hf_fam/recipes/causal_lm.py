"""Fine-tune a language model on texts, prompts with completions, or conversations; with LoRA adapters or as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, EvalPrediction

from ..data.checks import IGNORED, require_texts, require_values
from ..data.errors import DataError, named_source
from ..data.splits import TRAIN
from ..inputs.text import first_line, listed, quote
from ..measure.classification_metrics import calibration_error
from ..train.training_args import FAMTrainingArguments
from .common.arguments import DataArguments, MethodArguments, ModelArguments
from .common.data import drop_missing, find_column, load_splits, prepare_splits
from .common.models import load_model, load_preprocessing, tokens_within
from .common.parsing import parse
from .common.run import Run
from .common.selection import select_samples
from .common.summary import summarize
from .common.training import finetune, prepare_run

TOKEN_METRICS = ("accuracy", "nll", "perplexity", "ece")


@dataclass
class LanguageArguments(DataArguments):
    """Rows with `messages` (a conversation), with `prompt` and `completion`, or with `text`."""

    max_seq_length: int = field(default=512, metadata={"help": "Cut texts to at most N tokens."})
    text_column: str = field(default="text", metadata={"help": "Column of plain texts."})


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


ARGUMENT_TYPES = (ModelArguments, LanguageArguments, LoraArguments, MethodArguments, FAMTrainingArguments)


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
    model_args, data, lora, method, args = parse(ARGUMENT_TYPES, argv, methods)
    if model_args.freeze_backbone:
        raise ValueError("freeze_backbone: a language model has no head of its own to train; LoRA trains few weights.")
    if model_args.from_scratch and lora.use_lora:
        raise ValueError("from_scratch with adapters would train them on random weights: add --use_lora False.")
    prepare_run(args, model_args)
    with named_source(data.source_of):
        with args.main_process_first():
            splits = load_splits(data, model_args)
        data.text_column = find_column(splits, data.text_column)
        splits = drop_missing(splits, data, columns_in_use(splits, data.text_column), None)
        for name, split in splits.items():
            check_texts(split, data.text_column, name)
        splits = select_samples(splits, data, args.seed)
        columns = {"texts": ", ".join(columns_in_use(splits, data.text_column))}
        summary = summarize(data, splits, columns, is_stratified=False)
    tokenizer = load_preprocessing(model_args, AutoTokenizer, AutoModelForCausalLM, **model_args.tokenizer_options())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if "messages" in splits[TRAIN].column_names and tokenizer.chat_template is None:
        raise ValueError("tokenizer_name: the tokenizer has no chat template, which the column 'messages' needs.")

    def make_model() -> Any:
        loaded = load_model(model_args, AutoModelForCausalLM)
        return add_lora(loaded, lora) if lora.use_lora else loaded

    model = make_model()
    length = tokens_within(model, data.max_seq_length)

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        ids, prompt_length = tokenize(tokenizer, row, data.text_column)
        ids = ids[:length]
        labels = [IGNORED] * prompt_length + ids[prompt_length:]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    with args.main_process_first(), named_source(data.source_of):
        prepared = prepare_splits(splits, lambda split: prepare)
        splits = DatasetDict({k: v.filter(lambda row: has_labels(row["labels"])) for k, v in prepared.items()})
    for name, split in splits.items():
        if not len(split):
            raise ValueError(
                f"{data.source_of(name)}: no text of the {name} data has a token to learn within "
                f"max_seq_length={data.max_seq_length}: raise it, or give shorter prompts."
            )
    return Run(
        model_args, data, method, args, model, make_model, splits, tokenizer,
        DataCollatorForSeq2Seq(tokenizer, padding=True),
        token_metrics, TOKEN_METRICS,
        task="text-generation", preprocess_logits=reduce_logits, summary=summary,
    )  # fmt: skip


def add_lora(model: Any, lora: LoraArguments) -> Any:
    """Return the model with LoRA adapters.

    Raises:
        ValueError: the model has no such layers.
    """
    from peft import LoraConfig, get_peft_model  # needed for adapters only

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.lora_target_modules,
    )
    try:
        return get_peft_model(model, config)
    except (ValueError, RuntimeError, TypeError) as error:
        given = quote(lora.lora_target_modules)
        raise ValueError(f"lora_target_modules={given}: no adapters can be made: {first_line(error)}") from error


def columns_in_use(splits: DatasetDict, text_column: str) -> list[str]:
    """Return the columns that are read: a conversation, a prompt and its completion, or a text."""
    present = {*splits[TRAIN].column_names}
    kinds = (["messages"], ["prompt", "completion"], [text_column])
    return next((columns for columns in kinds if {*columns} <= present), [])


def check_texts(split: Dataset, text_column: str, name: str) -> None:
    """Refuse data that `tokenize` cannot read.

    Args:
        split: the data.
        text_column: column of plain texts, for data that has neither conversations nor prompts.
        name: name of the split.

    Raises:
        DataError: there is no column of texts, or one has an empty place or something else.
    """
    columns = split.column_names
    if "messages" in columns:
        require_values(split, "messages", name)
        entry = getattr(split.features["messages"], "feature", None)
        if not (isinstance(entry, dict) and {"role", "content"} <= {*entry}):
            raise DataError("column 'messages' has to contain lists of objects with 'role' and 'content'.", name)
        return
    texts = ("prompt", "completion") if {"prompt", "completion"} <= {*columns} else (text_column,)
    if not {*texts} <= {*columns}:
        raise DataError(
            f"columns {listed(columns)}: give 'messages', 'prompt' and 'completion', or text_column.",
            name,
        )
    for column in texts:
        require_texts(split, column, name)


def tokenize(tokenizer: Any, row: dict[str, Any], text_column: str) -> tuple[list[int], int]:
    """Return the tokens of a row, and the length of its prompt, which is not learned."""
    if "messages" in row:
        return list(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)), 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if "prompt" in row and "completion" in row:
        prompt = tokenizer(row["prompt"])["input_ids"]
        return [*prompt, *tokenizer(row["completion"], add_special_tokens=False)["input_ids"], *end], len(prompt)
    return [*tokenizer(row[text_column])["input_ids"], *end], 0


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
