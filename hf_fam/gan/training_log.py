"""Logged values of critic and generator, kept on the device until they are logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class CriticLog:
    """Means over the steps since the last log, and the largest gradient norm.

    Examples:
        >>> log = CriticLog()
        >>> log.add_critic(0, 1.0, torch.tensor(2.0), torch.tensor(0.25), torch.tensor([0.5, 1.5]), 10.0)
        >>> log.drain(1.0, lambda t: t, lambda t: t)
        {'wasserstein_estimate': 2.0, 'gradient_penalty': 0.25, 'penalty_term': 2.5, 'gradient_violation': 0.5}
    """

    _estimates: dict[int, list[Tensor]] = field(default_factory=dict)
    _penalties: dict[int, list[Tensor]] = field(default_factory=dict)
    _terms: dict[int, list[Tensor]] = field(default_factory=dict)
    _generator: dict[int, list[Tensor]] = field(default_factory=dict)
    _largest: list[Tensor] = field(default_factory=list)

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
        self._estimates.setdefault(step, []).append(estimate * share)
        if penalty is None or norms is None:
            return
        self._penalties.setdefault(step, []).append(penalty * share)
        self._terms.setdefault(step, []).append(penalty * (share * weight))
        self._largest.append(norms.max())

    def add_generator(self, step: int, share: float, loss: Tensor) -> None:
        """Record one micro-batch of a generator step."""
        self._generator.setdefault(step, []).append(loss * share)

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
        named = (
            ("wasserstein_estimate", self._estimates, self._estimates),
            ("gradient_penalty", self._penalties, self._penalties),
            # A lazy penalty is 0 between its steps, so its term is a mean over all critic steps.
            ("penalty_term", self._terms, self._estimates),
            ("generator_loss", self._generator, self._generator),
        )
        for name, values, steps in named:
            if values:
                total = torch.stack([part for parts in values.values() for part in parts]).sum()
                logs[name] = mean_over_processes(total / len(steps)).item()
        if self._largest:
            logs["gradient_violation"] = gather(torch.stack(self._largest).max().reshape(1)).max().item() - target
        for buffer in (self._estimates, self._penalties, self._terms, self._generator, self._largest):
            buffer.clear()
        return {name: float(f"{value:.7g}") for name, value in logs.items()}
