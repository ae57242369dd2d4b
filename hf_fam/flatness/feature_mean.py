"""The running mean of a layer's features, for kappa of centered features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calculus.derivatives import wide

# Later batches count for a twentieth each, so that the mean soon follows a backbone that is trained.
MEMORY = 0.05
# The key of ``stateful_callbacks`` in trainer_state.json for the mean and the smoothing of a training.
STATE_KEY = "FAM"


class FeatureMean:
    """Running mean of a layer's features over all finished steps.

    A bias absorbs any shift of the features: ``W phi + b = W (phi - c) + (b + W c)``. kappa changes with it, because
    kappa counts what all items share. With the mean as c, perturbations are relative to the items' differences.

    Each step's mean is over all its micro-batches and processes. How the batch is split makes no difference.

    Attributes:
        value: c, shape ``(m,)``; None before the first step ends.

    Examples:
        >>> mean = FeatureMean()
        >>> mean.add([torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
        >>> mean.value is None
        True
        >>> mean.end_step()
        >>> mean.value
        tensor([2., 3.])
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._steps = 0
        self._sum: Tensor | None = None  # of the rows of the current step
        self._rows = 0

    @torch.no_grad()
    def add(self, features: Sequence[Tensor]) -> None:
        """Add the rows of one micro-batch to the current step.

        Args:
            features: phi of every call of the layer, shapes ``(..., m)``.
        """
        for phi in features:
            rows = phi.detach().reshape(-1, phi.shape[-1]).to(wide(phi.dtype))
            batch_sum = rows.sum(0)
            self._sum = batch_sum if self._sum is None else self._sum + batch_sum
            self._rows += len(rows)

    def add_no_rows(self, features: int, like: Tensor) -> None:
        """Take part in the sum of the current step without a row, for a micro-batch that does not call the layer.

        Args:
            features: m.
            like: a tensor with the device and precision of the sum.
        """
        if self._sum is None:
            self._sum = like.new_zeros(features, dtype=wide(like.dtype))

    def center_for(self, features: Sequence[Tensor]) -> Tensor:
        """Return c, or the mean of these features before the first step ends."""
        if self.value is not None:
            return self.value
        batch_mean = FeatureMean()
        batch_mean.add(features)
        batch_mean.end_step()
        assert batch_mean.value is not None
        return batch_mean.value

    def end_step(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the running mean towards the mean of the current step.

        Args:
            sum_over_processes: adds up a tensor over all processes; None for a single process.
        """
        if self._sum is None:
            return
        if sum_over_processes is None:
            mean = self._sum / self._rows if self._rows else None
        else:
            mean = self._mean_of(sum_over_processes(torch.cat([self._sum, self._sum.new_full((1,), self._rows)])))
        self.discard_step()
        if mean is None:
            return
        self._steps += 1
        self.value = mean if self.value is None else self.value.lerp(mean, max(1 / self._steps, MEMORY))

    def _mean_of(self, total: Tensor) -> Tensor | None:
        """Return the mean of all processes from the sum of their rows and the number of rows.

        Without rows it is the running mean, which then stays, or None if there is none yet.
        """
        rows = total[-1]
        if self.value is None:
            return total[:-1] / rows if rows > 0 else None
        return torch.where(rows > 0, total[:-1] / rows, self.value)  # does not wait for the device

    def discard_step(self) -> None:
        """Discard the rows of the current step."""
        self._sum, self._rows = None, 0

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed training needs, ready for JSON."""
        return {"mean": None if self.value is None else self.value.tolist(), "steps": self._steps}

    def load(self, state: dict[str, Any] | None, weight: Tensor) -> None:
        """Restore a `state`, or start over if it is None.

        Args:
            state: result of `state`.
            weight: W, shape ``(d, m)``; the mean gets its device and precision.

        Raises:
            ValueError: the state is damaged; the message says how.
        """
        mean, steps = (None, 0) if state is None else _checked(state, weight.shape[-1])
        self.value = None if mean is None else torch.tensor(mean, dtype=wide(weight.dtype), device=weight.device)
        self._steps = steps
        self.discard_step()


def _checked(state: Any, features: int) -> tuple[list[float] | None, int]:
    """Return mean and number of steps of a saved state."""
    if not isinstance(state, dict) or not {"mean", "steps"} <= set(state):
        raise ValueError("'mean' or 'steps' is missing")
    mean, steps = state["mean"], state["steps"]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 or (steps == 0) != (mean is None):
        raise ValueError(f"steps is {steps!r:.40}")
    if mean is None:
        return None, 0
    if not isinstance(mean, list) or len(mean) != features:
        raise ValueError(
            f"it has {len(mean) if isinstance(mean, list) else 'no list of'} numbers instead of {features}"
        )
    if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in mean):
        raise ValueError("it contains a value that is not a finite number")
    return mean, steps
