"""The running mean of a layer's features, for kappa of centered features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calculus.derivatives import wide

# Later batches count for a twentieth each: the mean of twenty batches, soon after a trunk has moved.
MEMORY = 0.05


class FeatureMean:
    """Mean over rows of the features of the steps so far, not that of the step under way.

    A bias takes up any shift of the features, ``W phi + b = W (phi - c) + (b + W c)``, and kappa does not: what all
    items share counts as size. With c the mean, perturbations are relative to what tells items apart.

    The mean is over all micro-batches and processes of a step, so that it does not matter how a step's batch is cut.

    Attributes:
        value: c, shape ``(m,)``; None before the first step is over.

    Examples:
        >>> mean = FeatureMean()
        >>> mean.note([torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
        >>> mean.value is None
        True
        >>> mean.end_step()
        >>> mean.value
        tensor([2., 3.])
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._steps = 0
        self._sum: Tensor | None = None  # of the step under way, the number of rows behind it

    @torch.no_grad()
    def note(self, features: Sequence[Tensor]) -> None:
        """Count the rows of one micro-batch.

        Args:
            features: phi of every call of the layer, shapes ``(..., m)``.
        """
        for phi in features:
            rows = phi.detach().reshape(-1, phi.shape[-1]).to(wide(phi.dtype))
            found = torch.cat([rows.sum(0), rows.new_tensor([float(len(rows))])])
            self._sum = found if self._sum is None else self._sum + found

    def of(self, features: Sequence[Tensor]) -> Tensor:
        """c; the mean of these features while there is none."""
        if self.value is not None:
            return self.value
        alone = FeatureMean()
        alone.note(features)
        alone.end_step()
        assert alone.value is not None
        return alone.value

    def end_step(self, summed: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        """Take what was noted into the mean.

        Args:
            summed: adds up a tensor over all processes.
        """
        if self._sum is None:
            return
        total, self._sum = summed(self._sum), None
        self._steps += 1
        mean = total[:-1] / total[-1]
        if self.value is None:
            self.value = mean
        else:
            self.value = self.value + max(1 / self._steps, MEMORY) * (mean - self.value)

    def forget_step(self) -> None:
        """Drop what was noted of the step under way: it is begun anew."""
        self._sum = None

    def state(self) -> dict[str, Any]:
        """What a resumed training needs, fit for JSON."""
        return {"mean": None if self.value is None else self.value.tolist(), "steps": self._steps}

    def load(self, state: dict[str, Any] | None, like: Tensor) -> None:
        """Take up `state`, on the device and in the precision of ``like``; begin anew if there is none."""
        mean, self._steps = (state["mean"], state["steps"]) if state else (None, 0)
        self.value = None if mean is None else torch.tensor(mean, dtype=wide(like.dtype), device=like.device)
        self._sum = None
