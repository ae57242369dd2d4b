"""What the regimes that use the Trainer share."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from torch import nn
from transformers import Trainer

from ..methods import Method
from .outcome import Outcome


def arguments_for(settings: Any, seed: int, **others: Any) -> dict[str, Any]:
    """Training arguments that every regime has."""
    return {
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
        **others,
    }


def train_and_predict(
    method: Method,
    model: nn.Module,
    data: dict[str, list[dict[str, Any]]],
    arguments: dict[str, Any],
    order: dict[str, np.ndarray],
    **kwargs: Any,
) -> Outcome:
    """Train on one part, predict them all.

    Args:
        method: makes the Trainer.
        model: is trained.
        data: examples of every part.
        arguments: for ``TrainingArguments``, without the folder.
        order: of a part's examples while they are predicted, where another one is cheaper.
        kwargs: for the Trainer.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = method.trainer(
            {**arguments, "output_dir": folder}, model=model, train_dataset=data["train"], **kwargs
        )
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        logits = {part: predict(trainer, d, order.get(part, np.arange(len(d)))) for part, d in data.items()}
    return Outcome(logits, seconds, cpu_seconds, trainer.state.global_step)


def predict(trainer: Trainer, examples: list[dict[str, Any]], order: np.ndarray) -> Any:
    """Logits, in the order of the examples."""
    trainer.args.train_sampling_strategy = "random"  # grouping by length would reorder evaluation as well
    output = trainer.predict([examples[k] for k in order])
    if not np.array_equal(output.label_ids, [examples[k]["labels"] for k in order]):
        raise RuntimeError("the Trainer has reordered what it was to predict")
    logits = np.empty_like(output.predictions)
    logits[order] = output.predictions
    return logits
