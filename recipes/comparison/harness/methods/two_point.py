"""Noise stability by two points (Zhang et al. 2023, arXiv 2306.08553): gradients at W + U and at W - U, averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from .base import Method, register


@register("two_point")
class TwoPoint(Method):
    """U is Gaussian with deviation ``size`` on every trained weight; two forward and backward passes a step."""

    def __init__(self, size: float) -> None:
        self._size = size

    def attach(self, model: nn.Module, seed: int) -> None:
        self._noise = Noise([p for p in model.parameters() if p.requires_grad], self._size, seed)

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> Tensor:
        loss, gradients = self._noise.at_both_sides(closure)
        for parameter, gradient in zip(self._noise.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return loss

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        self.attach(kwargs["model"], arguments["seed"])
        return TwoPointTrainer(self._noise, args=TrainingArguments(**arguments), **kwargs)


class Noise:
    def __init__(self, parameters: Iterable[nn.Parameter], size: float, seed: int) -> None:
        self.parameters = list(parameters)
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)

    def at_both_sides(self, closure: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Mean loss and mean gradients; the closure clears gradients, computes them and returns the loss."""
        start = [p.detach().clone() for p in self.parameters]
        noise = [self._size * torch.randn(p.shape, generator=self._generator) for p in self.parameters]
        losses, gradients = [], []
        for sign in (1, -1):
            self._move(start, noise, sign)
            losses.append(closure())
            gradients.append([None if p.grad is None else p.grad.clone() for p in self.parameters])
        self._move(start, noise, 0)
        means = [None if a is None or b is None else (a + b) / 2 for a, b in zip(*gradients, strict=True)]
        return torch.stack(losses).mean(), means

    @torch.no_grad()
    def _move(self, start: list[Tensor], noise: list[Tensor], sign: int) -> None:
        for parameter, at, u in zip(self.parameters, start, noise, strict=True):
            parameter.copy_(at + sign * u if sign else at)


class TwoPointTrainer(Trainer):
    def __init__(self, noise: Noise, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.gradient_accumulation_steps > 1:
            raise ValueError("two_point needs the gradient of a whole batch: gradient_accumulation_steps=1.")
        self._noise = noise

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        def closure() -> Tensor:
            model.zero_grad()
            return super(TwoPointTrainer, self).training_step(model, *args, **kwargs)

        loss, gradients = self._noise.at_both_sides(closure)
        for parameter, gradient in zip(self._noise.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss
