"""Early stopping: the weights of the epoch that is best on a held-out part of the training data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inputs.rows import select
from .base import Method, register
from .kept_weights import KeptWeights, keep


@register
class EarlyStopping(Method):
    """The weights of the epoch with the least loss on training rows that are held out, with their noisy labels.

    The rows are chosen at random with the seed. The training itself goes on to its end.
    """

    name = "early_stopping"
    field = "early_stopping_share"
    description = "the epoch that is best on a held-out share of the training data (Prechelt 1998)"
    default = 0.2
    step = 2.0
    limits = (0.0, 1.0)

    def apply(self, trainer: Any) -> None:
        """Hold out a part of the training data, and keep the best weights.

        Raises:
            ValueError: the training data has no length or too few rows, the best checkpoint would replace the weights,
                or they are spread over processes.
        """
        data = trainer.train_dataset
        rows = len(data) if hasattr(data, "__len__") and hasattr(data, "__getitem__") else 0
        count = round(self.value * rows)
        if not 0 < count < rows:
            raise ValueError(
                f"method={self.name!r} with {self.field}={self.value:g} cannot hold out a part of the training data, "
                f"which has {rows or 'no known number of'} rows: give more rows, or choose another method."
            )
        order = np.random.default_rng(trainer.args.seed).permutation(rows)
        kept = _Best(trainer, select(data, order[:count]))
        keep(self, trainer, kept)
        trainer.train_dataset = select(data, np.sort(order[count:]))


class _Best(KeptWeights):
    file = "best_on_held_out.safetensors"
    # Beside the weights, the loss that they had.
    loss = "loss of the held-out rows"

    def __init__(self, trainer: Any, held_out: Any) -> None:
        super().__init__()
        self._trainer, self._held_out = trainer, held_out

    def of_model(self, model: Any) -> dict[str, Tensor]:
        return {**super().of_model(model), **dict(model.named_buffers())}

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        output = self._trainer.evaluation_loop(
            self._trainer.get_eval_dataloader(self._held_out), "Held-out rows", True, metric_key_prefix="held_out"
        )
        loss = output.metrics.get("held_out_loss", math.nan)
        if loss < float(self.weights.get(self.loss, math.inf)):
            self.weights = {name: tensor.detach().clone() for name, tensor in self.of_model(model).items()}
            self.weights[self.loss] = torch.tensor(loss, dtype=torch.float64)
