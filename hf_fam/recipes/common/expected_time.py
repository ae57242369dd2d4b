"""How long a training will take, from one step of the model."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import Trainer

from ...layer.model_state import preserve_state
from ...measure.data import to_device

# Forward and backward passes of a batch; the first one is not counted.
_PASSES = 2


def seconds_of_training(trainer: Trainer) -> float | None:
    """Return the expected duration of a training, without evaluations and checkpoints; None if it is not known.

    A batch goes forward and backward through the model. Random states, buffers and gradients stay as they were.

    Args:
        trainer: the ``Trainer``, before its training.
    """
    if trainer.args.world_size > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    model: Any = trainer.model
    data: Any = trainer.train_dataset
    size = min(trainer.args.train_batch_size, len(data))
    with preserve_state(model):
        batch = to_device(trainer.data_collator([data[k] for k in range(size)]), trainer.args.device)
        model.train()
        for _ in range(_PASSES):
            start = time.perf_counter()
            loss = model(**batch).loss
            if loss is None:
                return None
            loss.backward()
            if trainer.args.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds * number_of_steps(trainer) * trainer.args.gradient_accumulation_steps


def number_of_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps of a training."""
    args, data = trainer.args, trainer.train_dataset
    if args.max_steps > 0:
        return args.max_steps
    batches = -(-len(data) // (args.train_batch_size * args.world_size))  # type: ignore[arg-type]
    steps = max(-(-batches // args.gradient_accumulation_steps), 1)
    return max(1, -int(-steps * args.num_train_epochs // 1))


def as_duration(seconds: float) -> str:
    """Return a duration in words, rounded as an estimate is.

    Examples:
        >>> as_duration(3), as_duration(75), as_duration(600), as_duration(9000)
        ('less than a minute', 'about 2 minutes', 'about 10 minutes', 'about 2.5 hours')
    """
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        return f"about {-int(-minutes // 1)} minutes"
    return f"about {minutes / 60:.1f} hours"
