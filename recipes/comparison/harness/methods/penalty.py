"""Methods that add a term to the loss, from what the one forward pass showed."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from .base import Method


class Penalty(Method, ABC):
    """``loss + term``; a subclass says what is watched and what the term is."""

    @abstractmethod
    def attach(self, model: nn.Module, seed: int) -> None:
        """Prepare to watch a model that is about to be trained."""

    @abstractmethod
    def watch(self) -> contextlib.AbstractContextManager[Any]:
        """Around the forward pass."""

    @abstractmethod
    def term(self, loss: Tensor) -> Tensor:
        """What is added, its strength included."""

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with self.watch():
            loss = super().loss(model, inputs, labels)
        return loss + self.term(loss)

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        self.attach(kwargs["model"], arguments["seed"])
        return PenaltyTrainer(self, args=TrainingArguments(**arguments), **kwargs)


class PenaltyTrainer(Trainer):
    """Adds the term of anything with ``watch`` and ``term``, as of a `Penalty`."""

    def __init__(self, penalty: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.gradient_accumulation_steps > 1:
            raise ValueError("penalties are compared with gradient_accumulation_steps=1.")
        self._penalty = penalty

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if not (model.training and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        with self._penalty.watch():
            loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        loss = loss + self._penalty.term(loss)
        return (loss, outputs) if return_outputs else loss
