"""Logged values of critic and generator, kept on the device until they are logged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ESTIMATE, _PENALTY, _TERM, _GENERATOR = "wasserstein_estimate", "gradient_penalty", "penalty_term", "generator_loss"


class CriticLog:
    """Means over the steps since the last log, and the largest gradient norm.

    Sums on the device, whose memory does not grow with the number of steps between two logs.

    Examples:
        >>> log = CriticLog()
        >>> log.add_critic(0, 1.0, torch.tensor(2.0), torch.tensor(0.25), torch.tensor([0.5, 1.5]), 10.0)
        >>> log.drain(1.0, lambda t: t, lambda t: t)
        {'wasserstein_estimate': 2.0, 'gradient_penalty': 0.25, 'penalty_term': 2.5, 'gradient_violation': 0.5}
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._last_step: dict[str, int] = {}
        self._largest: Tensor | None = None
        self._weight = 0.0

    def add_critic(
        self,
        step: int,
        share: float,
        estimate: Tensor,
        penalty: Tensor | None = None,
        norms: Tensor | None = None,
        weight: float = 0.0,
    ) -> None:
        """Record one micro-batch of a critic step.

        Args:
            step: optimizer steps already taken.
            share: weight of the micro-batch in the mean over its step.
            estimate: mean f(real) - mean f(generated), detached.
            penalty: without lambda, where it was computed in this step.
            norms: norms of the penalized gradients.
            weight: lambda, times the interval of a lazy penalty.
        """
        self._add(_ESTIMATE, step, estimate, share)
        if penalty is None or norms is None:
            return
        self._add(_PENALTY, step, penalty, share)
        self._weight = weight
        self._largest = norms.max() if self._largest is None else torch.maximum(self._largest, norms.max())

    def add_generator(self, step: int, share: float, loss: Tensor) -> None:
        """Record one micro-batch of a generator step."""
        self._add(_GENERATOR, step, loss, share)

    def drain(
        self, target: float, mean_over_processes: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Return the means since the last call, under their logged names.

        Args:
            target: the norm that gradients should stay below.
            mean_over_processes: averages a tensor over all processes.
            gather: stacks one-element tensors of all processes.
        """
        logs: dict[str, float] = {}
        for name in (_ESTIMATE, _PENALTY, _GENERATOR):
            if name in self._sums:
                logs[name] = mean_over_processes(self._sums[name] / self._steps[name]).item()
        if _PENALTY in logs:
            # A lazy penalty is 0 between its steps, so its term is a mean over all critic steps.
            logs[_TERM] = self._weight * logs[_PENALTY] * self._steps[_PENALTY] / self._steps[_ESTIMATE]
        if self._largest is not None:
            logs["gradient_violation"] = gather(self._largest.reshape(1)).max().item() - target
        self._clear()
        return {name: float(f"{value:.7g}") for name, value in logs.items()}

    def _add(self, name: str, step: int, value: Tensor, factor: float) -> None:
        """Add a value of a step to its sum."""
        # In the precision of the losses, a sum over many steps would lose the small ones.
        dtype = torch.float32 if value.device.type == "mps" else torch.float64
        weighted = value.to(dtype) * factor
        self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        if self._last_step.get(name) != step:
            self._steps[name] = self._steps.get(name, 0) + 1
        self._last_step[name] = step
