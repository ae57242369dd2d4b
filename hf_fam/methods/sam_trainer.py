"""Sharpness-aware minimization (Foret et al. 2021) in a Trainer, with pytorch_optimizer's SAM around AdamW or SGD."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_optimizer import SAM as SAMOptimizer
from torch import Tensor, nn
from transformers import Trainer

# Settings that the parameter groups keep when SAM wraps an optimizer of the Trainer.
GROUP_SETTINGS = {
    torch.optim.AdamW: ("params", "weight_decay", "betas", "eps"),
    torch.optim.SGD: ("params", "weight_decay", "momentum", "dampening", "nesterov"),
}


class SAMTrainer(Trainer):
    """A `Trainer` with SAM's two passes: `training_step` makes the second one, at the worst point nearby.

    With gradient accumulation the worst point is that of the whole batch, so all its micro-batches are passed twice. It
    is the same in all processes, because the gradients are.

    Stands in front of any Trainer; `start_sam` turns it on.
    """

    def start_sam(self, rho: float) -> None:
        """Turn SAM on, before the training.

        Args:
            rho: radius of SAM.

        Raises:
            ValueError: mixed precision is fp16, or the launcher starts DeepSpeed or FSDP.
        """
        if self.accelerator.scaler is not None:
            raise ValueError(
                "method='sam' with fp16: a step that the gradient scaler skips would stay at the worst point. Choose "
                "bf16, or no mixed precision."
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("method='sam' works in one process and with DistributedDataParallel only.")
        self._rho = rho
        self._micro_batches: list[tuple[Any, Any]] = []

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create SAM around the optimizer that the arguments name.

        Raises:
            ValueError: it is neither AdamW nor SGD.
        """
        base = super().create_optimizer(*args, **kwargs)
        if type(base) not in GROUP_SETTINGS:
            name = getattr(self.args.optim, "value", self.args.optim)
            raise ValueError(f"optim={name!r} with method='sam': SAM is made around AdamW or sgd.")
        groups = [{name: group[name] for name in GROUP_SETTINGS[type(base)]} for group in base.param_groups]
        self._sam = self.optimizer = _SecondStep(groups, type(base), self._rho, lr=self.args.learning_rate)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Pass a micro-batch; after the last one of a batch climb and pass all of them again."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append((inputs, num_items_in_batch))
        if self.accelerator.sync_gradients:  # the gradient is that of the whole batch
            micro_batches, self._micro_batches = self._micro_batches, []
            self._sam.first_step(zero_grad=True)
            with frozen_running_statistics(model):
                for inputs, number in micro_batches:
                    super().training_step(model, inputs, number)
        return loss


class _SecondStep(SAMOptimizer):
    """SAM whose `step` is the second half of a step: the Trainer calls it after both passes."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.second_step()


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Keep batch normalization from updating its running statistics, for passes at another point than the model's."""
    tracking: list[Any] = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
