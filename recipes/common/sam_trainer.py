"""Sharpness-aware minimisation (Foret et al. 2021) in a Trainer, by pytorch_optimizer's class around AdamW."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import SAM as SAMOptimizer
from torch import Tensor
from transformers import Trainer


class SAMTrainer(Trainer):
    """The second pass happens in `training_step`; the Trainer's optimizer step comes back from the worst point."""

    def __init__(self, *args: Any, rho: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1:
            raise ValueError("SAM needs the gradient of a whole batch: gradient_accumulation_steps=1.")
        self._rho = rho

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        base = super().create_optimizer(*args, **kwargs)
        # The parameter groups carry their own weight decay.
        if not isinstance(base, torch.optim.AdamW):
            raise ValueError(f"SAM is made around AdamW, not around optim={self.args.optim!r}: leave optim as it is.")
        groups = [{k: group[k] for k in ("params", "weight_decay", "betas", "eps")} for group in base.param_groups]
        self._sam = self.optimizer = _StepsBack(groups, torch.optim.AdamW, self._rho, lr=self.args.learning_rate)
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._sam.first_step(zero_grad=True)
        super().training_step(*args, **kwargs)
        return loss


class _StepsBack(SAMOptimizer):
    """The second half of a SAM step, under the name that the Trainer calls."""

    def step(self, closure: Any = None) -> None:
        self.second_step()
