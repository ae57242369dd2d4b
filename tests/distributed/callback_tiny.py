"""Train with FlatnessCallback and write what was logged; started by test_two_processes_callback.py."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from hf_fam import FlatnessCallback, measure_relative_flatness
from support.leaving import leave_together
from support.tiny import classified, set_seeds, tiny_bert


class Stream(IterableDataset):
    """Items without a length, which accelerate splits over the processes."""

    def __iter__(self) -> Any:
        return iter(classified(11))


def trained(folder: Path, *callbacks: FlatnessCallback, dropout: float = 0.0, evaluated: Any = None) -> Trainer:
    set_seeds(0)
    args = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=4,
        learning_rate=0.05, optim="sgd", eval_strategy="steps", eval_steps=1,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        tiny_bert(dropout=dropout).double(), args, train_dataset=classified(12),
        eval_dataset=evaluated or classified(11), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train()
    return trainer


def alone(trainer: Trainer, data: list[Any], **given: Any) -> list[float]:
    """kappa of the trained model, measured by this process without the others."""
    options = {"measures": ("trace",), "batch_size": 2, **given}
    return [r.kappa for r in measure_relative_flatness(trainer.model, data, **options)]


def states() -> list[Any]:
    """Random states of this process."""
    return [torch.get_rng_state().tolist(), random.getstate()[1], np.random.get_state()[1].tolist()]


def main(output: Path) -> None:
    torch.set_num_threads(1)
    layers = ["head", "bert.encoder.layer.0.output.dense"]
    watching = FlatnessCallback(layers=layers, items=7, batch_size=2, probes=3)
    trainer = trained(output.parent, watching)
    kappas = [{k: v for k, v in e.items() if "kappa" in k} for e in trainer.state.log_history if "eval_kappa" in e]
    processes = dist.get_world_size() if dist.is_initialized() else 1
    trainer.create_model_card()
    stream = FlatnessCallback(layers=layers, items=7, batch_size=2)
    streamed = trained(output.parent, stream, evaluated=Stream())
    own = FlatnessCallback(classified(9), layers, batch_size=16)  # data of one's own, fewer batches than processes
    owned = trained(output.parent, own)
    expected = [
        alone(trainer, classified(11)[:7], layers=layers, probes=3),
        alone(streamed, classified(11)[:7], layers=layers), alone(owned, classified(9), layers=layers, batch_size=16),
    ]  # fmt: skip
    alike = []
    for callbacks in ([], [FlatnessCallback(layers=layers)]):
        model = trained(output.parent, *callbacks, dropout=0.1).model
        alike.append([[p.tolist() for p in model.parameters()], states()])
    same = [alike[0] == alike[1]]
    if processes > 1:
        every: list[Any] = [None] * processes
        dist.all_gather_object(every, same[0])
        same = every
    if trainer.is_world_process_zero():
        found = {
            "processes": processes, "kappas": kappas, "expected": expected, "same": same,
            "logged": [[r.kappa for r in c.last] for c in (watching, stream, own)],
            "items": [c.last[0].num_items for c in (watching, stream, own)],
        }  # fmt: skip
        output.write_text(json.dumps(found))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
