"""Full fine-tuning of all-MiniLM-L6-v2 with the Trainer, as users do it: about a minute a run."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, set_seed

from ..embeddings import minilm_path, tokenizer
from ..methods import Method
from ..tasks import Examples, Split
from .loop import PARTS
from .outcome import Outcome


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-4
    epochs: int = 15
    batch_size: int = 16
    weight_decay: float = 0.0
    warmup: float = 0.1
    max_length: int = 64


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """The pooler and a new head on the first token; a learning rate that falls linearly."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=split.classes)
    data = {part: tokenised(getattr(split, part), settings.max_length) for part in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "output_dir": folder,
            "seed": seed,
            "learning_rate": settings.learning_rate,
            "num_train_epochs": settings.epochs,
            "per_device_train_batch_size": settings.batch_size,
            "per_device_eval_batch_size": 64,
            "weight_decay": settings.weight_decay,
            "warmup_steps": settings.warmup,
            "use_cpu": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        collator = DataCollatorWithPadding(tokenizer())
        trainer = method.trainer(arguments, model=model, train_dataset=data["train"], data_collator=collator)
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        logits = {part: trainer.predict(data[part]).predictions for part in PARTS}
    return Outcome(logits, seconds, cpu_seconds, trainer.state.global_step)


def tokenised(examples: Examples, max_length: int) -> list[dict[str, Any]]:
    columns = [list(column) for column in zip(*examples.inputs, strict=True)]
    encoded = tokenizer()(*columns, truncation=True, max_length=max_length)
    return [
        {"input_ids": ids, "token_type_ids": types, "attention_mask": mask, "labels": int(label)}
        for ids, types, mask, label in zip(
            encoded["input_ids"], encoded["token_type_ids"], encoded["attention_mask"], examples.labels, strict=True
        )
    ]
