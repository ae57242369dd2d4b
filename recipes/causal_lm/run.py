"""Fine-tune a language model on texts, on prompts with completions, or on conversations; with LoRA adapters or whole.

accelerate launch recipes/causal_lm/run.py recipes/causal_lm/fam.yaml --train_file mine.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

sys.path.append(str(Path(__file__).parents[2]))

import numpy as np
import torch
from datasets import DatasetDict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, EvalPrediction

from hf_fam import FAMTrainingArguments
from hf_fam.measure.classification_metrics import calibration_error
from recipes.common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from recipes.common.data import TRAIN, load_parts, require_values
from recipes.common.metrics import IGNORED
from recipes.common.models import load_model
from recipes.common.training import Run, begin, finetune


@dataclass
class LanguageArguments(DataArguments):
    """Rows with `messages` (a conversation), with `prompt` and `completion`, or with `text`."""

    max_seq_length: int = field(default=512, metadata={"help": "Tokens after which a text is cut."})
    text_column_name: str = field(default="text", metadata={"help": "Column of plain texts."})


@dataclass
class LoraArguments:
    """Adapters (PEFT); what PEFT calls r, lora_alpha, lora_dropout and target_modules."""

    use_lora: bool = field(default=True, metadata={"help": "False: all weights are trained."})
    lora_r: int = field(default=16, metadata={"help": "Rank."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale, divided by the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "On the adapters' inputs."})
    lora_target_modules: Optional[list[str]] = field(  # noqa: UP045
        default=None, metadata={"help": "Names of layers; PEFT's choice for the model otherwise."}
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    kinds = (ModelArguments, LanguageArguments, LoraArguments, MethodArguments, FAMTrainingArguments)
    model_args, data, lora, method, args = parse(kinds, argv)
    if model_args.from_scratch and lora.use_lora:
        raise ValueError("from_scratch with adapters would train them on random weights: add --use_lora False.")
    begin(args)
    with args.main_process_first():
        parts = load_parts(data, model_args, args.seed)
    for column in read_columns(parts[TRAIN].column_names, data.text_column_name):
        require_values(parts, column)
    tokenizer = AutoTokenizer.from_pretrained(**model_args.tokenizer())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_model(model_args, AutoModelForCausalLM)
    model = with_lora(model, lora) if lora.use_lora else model

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        ids, prompt = tokens(tokenizer, row, data.text_column_name)
        ids = ids[: data.max_seq_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * prompt + ids[prompt:]}

    with args.main_process_first():
        parts = DatasetDict(
            {
                k: part.map(prepare, remove_columns=part.column_names).filter(lambda row: has_labels(row["labels"]))
                for k, part in parts.items()
            }
        )
    for name, part in parts.items():
        if not len(part):
            raise ValueError(
                f"no text of the {name} data has a token to learn within max_seq_length={data.max_seq_length}: raise "
                "it, or give shorter prompts."
            )
    run = Run(
        model_args, data, method, args, model, parts, tokenizer, DataCollatorForSeq2Seq(tokenizer, padding=True),
        of_tokens,
        task="text-generation", preprocess_logits=reduce_logits,
    )  # fmt: skip
    return finetune(run)


def with_lora(model: Any, lora: LoraArguments) -> Any:
    from peft import LoraConfig, get_peft_model  # for adapters alone

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.lora_target_modules,
    )
    return get_peft_model(model, config)


def read_columns(present: Sequence[str], text_column: str) -> tuple[str, ...]:
    """Those that `tokens` reads."""
    if "messages" in present:
        return ("messages",)
    return ("prompt", "completion") if {"prompt", "completion"} <= {*present} else (text_column,)


def tokens(tokenizer: Any, row: dict[str, Any], text_column: str) -> tuple[list[int], int]:
    """The tokens of a row, and how many of them are a prompt, which is not learned.

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
    """Whether a token is predicted; the first one never is."""
    return any(label != IGNORED for label in labels[1:])


def reduce_logits(logits: Any, labels: Tensor) -> Tensor:
    """Of each position: confidence, predicted token, log-probability of its label; all logits would take gigabytes."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    log_p = logits.float().log_softmax(-1)
    following = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)
    confidence, predicted = log_p.max(-1)
    of_label = log_p.gather(-1, following.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.stack([confidence.exp(), predicted.to(log_p.dtype), of_label], dim=-1)


def of_tokens(found: EvalPrediction) -> dict[str, float]:
    """Accuracy, NLL and calibration error of the labeled tokens."""
    reduced, labels = np.asarray(found.predictions)[:, :-1], np.asarray(found.label_ids)[:, 1:]
    counted = labels != IGNORED
    confidence, predicted, log_p = (reduced[..., k][counted] for k in range(3))
    right = predicted == labels[counted]
    return {
        "accuracy": float(right.mean()),
        "nll": float(-log_p.mean()),
        "perplexity": float(np.exp(-log_p.mean())),
        "ece": calibration_error(confidence, right),
    }


if __name__ == "__main__":
    main()
