"""Compare the time of a step of FAMTrainer with one of Trainer."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.utils.tqdm import tqdm
from transformers import Trainer


def interleaved_step_seconds(
    trainers: Mapping[str, Trainer], examples: Sequence[dict[str, Any]], pairs: int, warm_up: int = 3
) -> dict[str, Any]:
    """Return the seconds of a step of two trainers, which take turns.

    So other load on the machine affects both alike.

    Args:
        trainers: the plain trainer and the other one, by name. Both train for a few steps on the same batches.
        examples: the examples that batches are drawn from.
        pairs: number of timed steps of each.
        warm_up: number of steps of each before timing starts.

    Returns:
        Medians in seconds by name; median and quartiles of the ratio within a pair, second to first; and the ratio of
        the totals, which includes work that only some steps do.
    """
    (plain, other), first = trainers, next(iter(trainers.values()))
    random_batches = random.Random(first.args.seed)
    for trainer in trainers.values():
        trainer.current_gradient_accumulation_steps = 1  # the training loop sets this
        trainer.create_optimizer_and_scheduler(10 * (pairs + warm_up))
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for k in tqdm(range(pairs + warm_up), desc="pairs of steps"):
        size = min(first.args.per_device_train_batch_size, len(examples))
        batch = first.data_collator(random_batches.sample(list(examples), size))
        for name in (plain, other) if k % 2 else (other, plain):
            duration = _timed_step(trainers[name], dict(batch))
            if k >= warm_up:
                seconds[name].append(duration)
    ratios = [b / a for a, b in zip(seconds[plain], seconds[other], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    total = sum(seconds[other]) / sum(seconds[plain])
    return {**medians, "ratio": middle, "ratio_quartiles": [low, high], "ratio_of_totals": total, "pairs": pairs}


def _timed_step(trainer: Any, batch: dict[str, Any]) -> float:
    """Run a step as the Trainer's loop does, and return its seconds."""
    model, device = trainer.model, trainer.args.device
    start = time.perf_counter()
    trainer.training_step(model, batch)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    model.zero_grad()
    trainer.state.global_step += 1  # some work of FAM depends on the step
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - start
