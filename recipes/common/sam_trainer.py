"""Sharpness-aware minimization (Foret et al. 2021) in a Trainer, by pytorch_optimizer's class around AdamW or SGD."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_optimizer import SAM as SAMOptimizer
from torch import Tensor, nn
from transformers import Trainer

# What a parameter group of the wrapped optimizer keeps; the Trainer has set it.
KEPT = {
    torch.optim.AdamW: ("params", "weight_decay", "betas", "eps"),
    torch.optim.SGD: ("params", "weight_decay", "momentum", "dampening", "nesterov"),
}


class SAMTrainer(Trainer):
    """The second pass happens in `training_step`; the Trainer's optimizer step comes back from the worst point.

    With accumulation the worst point is that of the whole batch, so its micro-batches are passed twice. In several
    processes it is the same everywhere, because the gradients are.
    """

    def __init__(self, *args: Any, rho: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.accelerator.scaler is not None:
            raise ValueError(
                "method='sam' with fp16: a step that the gradient scaler leaves out would never come back from the "
                "worst point. Take bf16, or no mixed precision."
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("method='sam' works in one process and with DistributedDataParallel: launch it so.")
        self._rho = rho
        self._passed: list[tuple[Any, Any]] = []

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        base = super().create_optimizer(*args, **kwargs)
        if type(base) not in KEPT:
            raise ValueError(f"optim={self.args.optim!r} with method='sam': SAM is made around AdamW or sgd.")
        groups = [{name: group[name] for name in KEPT[type(base)]} for group in base.param_groups]
        self._sam = self.optimizer = _StepsBack(groups, type(base), self._rho, lr=self.args.learning_rate)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._passed.append((inputs, num_items_in_batch))
        if self.accelerator.sync_gradients:  # the gradient is that of the whole batch
            again, self._passed = self._passed, []
            self._sam.first_step(zero_grad=True)
            with fixed_statistics(model):
                for inputs, number in again:
                    super().training_step(model, inputs, number)
        return loss


class _StepsBack(SAMOptimizer):
    """The second half of a SAM step, under the name that the Trainer calls."""

    def step(self, closure: Any = None) -> None:
        self.second_step()


@contextlib.contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalization notes no running statistics: those of the worst point are not the model's."""
    tracking: list[Any] = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
