"""Sharpness-aware minimisation (Foret et al. 2021) by pytorch_optimizer's class around AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_optimizer import SAM as SAMOptimizer
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_fam.methods.sam_trainer import SAMTrainer

from .base import Method, register


@register("sam")
class SAM(Method):
    """Two forward and backward passes a step: to the worst point within ``rho``, and from there."""

    def __init__(self, rho: float) -> None:
        self._rho = rho

    def optimizer(self, parameters: Iterable[nn.Parameter], settings: Any) -> torch.optim.Optimizer:
        decay = settings.weight_decay
        return SAMOptimizer(parameters, torch.optim.AdamW, self._rho, lr=settings.learning_rate, weight_decay=decay)

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> Tensor:
        loss = closure()
        optimizer.step(closure)
        return loss

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        trainer = SAMTrainer(args=TrainingArguments(**arguments), **kwargs)
        trainer.start_sam(self._rho)
        return trainer
