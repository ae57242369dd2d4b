"""The Trainers of a task and a regime, for `hf_fam.compare`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import matthews_corrcoef
from transformers import EvalPrediction, Trainer, set_seed

from hf_fam import FAMTrainer, FAMTrainingArguments

from .regimes import REGIMES
from .tasks import Task, load


@dataclass(frozen=True)
class Trainers:
    """Makes the Trainer for a seed, which draws the training and validation examples; other processes can import it.

    Attributes:
        task: the data.
        regime: a key of `REGIMES`.
        settings: of the regime.
        data: folder of the data sets.
        cache: folder of frozen features.
    """

    task: Task
    regime: str
    settings: Any
    data: Path
    cache: Path

    def __call__(self, seed: int) -> Trainer:
        """Return a fresh Trainer with the training and validation examples of a seed."""
        regime, settings = REGIMES[self.regime], self.settings
        split = load(self.task, self.data, seed)
        train, validation = (regime.items(part, settings, self.cache) for part in (split.train, split.validation))
        set_seed(seed)
        args = FAMTrainingArguments(
            output_dir=tempfile.gettempdir(),
            seed=seed,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=256,
            weight_decay=settings.weight_decay,
            warmup_steps=settings.warmup,
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),  # bf16 on a CPU has to be asked for
            fam_lambda=0.0,  # the method sets it
            **{f"fam_{name}": value for name, value in settings.fam.items()},
            **regime.arguments(settings),
        )
        return FAMTrainer(
            model=regime.model(train, split.classes, settings),
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=regime.collator(),
            compute_metrics=matthews if self.task.metric == "matthews_correlation" else None,
        )

    def test_dataset(self) -> list[dict[str, Any]]:
        """Return the test examples, which are the same for every seed."""
        return REGIMES[self.regime].items(load(self.task, self.data, 0).test, self.settings, self.cache)


def matthews(predicted: EvalPrediction) -> dict[str, float]:
    """Return the Matthews correlation, the metric of CoLA."""
    classes = predicted.predictions.argmax(-1)  # type: ignore[union-attr]
    return {"matthews_correlation": float(matthews_corrcoef(predicted.label_ids, classes))}
