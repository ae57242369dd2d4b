"""The training loop of the small networks."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import Method
from .outcome import Outcome

PARTS = ("train", "validation", "test")


def train(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, settings: Any, method: Method) -> Outcome:
    """Train for a number of epochs, with a learning rate that falls to zero along a cosine.

    Args:
        model: inputs to logits; the method is attached.
        inputs: of every part of the split.
        labels: of the training part.
        settings: learning_rate, epochs, batch_size, weight_decay.
        method: what makes the loss and the step.
    """
    count = len(labels)
    optimizer = method.optimizer(model.parameters(), settings)
    per_epoch = -(-count // settings.batch_size)
    base = getattr(optimizer, "base_optimizer", optimizer)  # SAM's schedule is that of what it wraps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, settings.epochs * per_epoch)
    method.begin(settings.epochs * per_epoch)
    start, cpu_start = time.perf_counter(), time.process_time()
    model.train()
    for epoch in range(settings.epochs):
        for chosen in torch.randperm(count).split(settings.batch_size):
            x, y = inputs["train"][chosen], labels[chosen]

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = method.loss(model, x, y)
                loss.backward()
                return loss.detach()

            loss = method.step(optimizer, closure)
            schedule.step()
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch}")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    model.eval()
    with torch.no_grad():
        logits = {part: torch.cat([model(x) for x in inputs[part].split(1000)]).numpy() for part in PARTS}
    return Outcome(logits, seconds, cpu_seconds, settings.epochs * per_epoch)
