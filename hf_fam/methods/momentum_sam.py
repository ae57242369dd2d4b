"""Momentum SAM: gradients at a point that the optimizer's momentum shows, in one pass a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from .base import Method, register

# Where torch's optimizers keep their momentum.
BUFFERS = ("exp_avg", "momentum_buffer")


@register
class MomentumSAM(Method):
    """A step's gradient is that at ``w - strength * v / ||v||``, with the optimizer's momentum v.

    The first step has no momentum and is a plain one.
    """

    name = "momentum_sam"
    field = "momentum_sam_rho"
    description = "the gradient nearby, against the momentum, in one pass a step (Becker et al. 2024)"
    default = 0.3
    step = 3.0

    def apply(self, trainer: Any) -> None:
        """Add the steps to the point nearby and back.

        Raises:
            ValueError: the weights are spread over processes.
        """
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ValueError(f"method={self.name!r} works in one process and with DistributedDataParallel only.")
        trainer.add_callback(_Displacement(self.value))


class _Displacement(TrainerCallback):
    def __init__(self, rho: float) -> None:
        self._rho = rho
        self._weights: list[tuple[Tensor, Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        has_momentum = isinstance(inner, torch.optim.SGD) and all(g["momentum"] > 0 for g in inner.param_groups)
        if not (isinstance(inner, (torch.optim.Adam, torch.optim.AdamW)) or has_momentum):
            raise ValueError(
                f"optim={getattr(args.optim, 'value', args.optim)!r} with method='momentum_sam': momentum SAM needs "
                "AdamW, or sgd with optim_args='momentum=0.9'."
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        momenta = {p: entry[name] for p, entry in optimizer.state.items() for name in BUFFERS if name in entry}
        if not momenta:
            return
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack([v.norm().to("cpu", torch.float32) for v in momenta.values()]))
            self._weights = [(p, p.detach().clone()) for p in momenta]
            for p, v in momenta.items():
                p.sub_(v, alpha=self._rho / max(float(norm), 1e-12))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for p, weight in self._weights:
                p.copy_(weight)
        self._weights = []
