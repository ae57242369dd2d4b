"""Exponential moving average of the weights, by torch.optim.swa_utils."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .base import Method, register, round_to
from .kept_weights import KeptWeights, keep


@register
class MovingAverage(Method):
    """The model at the end is an exponential moving average of the weights of all steps.

    Evaluations during the training are those of the weights themselves.
    """

    name = "ema"
    field = "ema_decay"
    description = "exponential moving average of the weights, torch.optim.swa_utils (Polyak and Juditsky 1992)"
    default = 0.99
    limits = (0.0, 1.0)

    def strengths(self, count: int) -> list[float]:
        """Return decays whose distances from 1 are a factor apart."""
        first = -((count - 1) // 2)
        distances = [(1 - self.value) * self.step**k for k in range(first, first + count)]
        return [round_to(max(1 - distance, 0.1)) for distance in distances]

    def apply(self, trainer: Any) -> None:
        """Add the average.

        Raises:
            ValueError: the best checkpoint would replace the average, or the weights are spread over processes.
        """
        keep(self, trainer, _Average(self.value))


class _Average(KeptWeights):
    file = "moving_average.safetensors"

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._update = get_ema_multi_avg_fn(decay)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            self._update([*self.weights.values()], [p.detach() for p in self.of_model(model).values()], 0)
