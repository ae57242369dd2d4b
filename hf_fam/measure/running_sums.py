"""Means over a stream of items, with standard errors that are due to items and to probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MeanEstimate:
    """A mean and its standard errors, see `hf_fam.measure.LayerFlatness`."""

    value: float
    error: float
    items_error: float
    probes_error: float


class RunningMean:
    """``sum x / sum omega`` over units, in constant memory.

    A unit is an item, or a batch if items are coupled. x are contributions. omega are their weights: 1 for an item, or
    its number of labeled tokens. The error is that of a ratio, with residuals ``x - mean * omega``. Several probes of a
    unit give the part of the error that is due to probes. Units of weight 0 have no label and are not counted.

    Examples:
        >>> import torch
        >>> running_mean = RunningMean()
        >>> running_mean.add(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.ones(2))  # two units, two probes each
        >>> mean = running_mean.mean()
        >>> mean.value, mean.error, mean.probes_error
        (3.0, 1.0, 0.707...)
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(7, dtype=torch.float64)

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Add units.

        Args:
            values: x of every unit and probe, shape ``(units, probes)``.
            weights: omega, shape ``(units,)``.
        """
        x, w = values.double().cpu(), weights.double().cpu()
        mean = x.mean(1)
        probes = x.shape[1]
        spread = x.var(1).sum() / probes if probes > 1 else x.new_tensor(math.nan)
        self.sums += torch.stack(
            [mean.sum(), (mean**2).sum(), (mean * w).sum(), w.sum(), (w**2).sum(), (w > 0).sum().to(w), spread]
        )

    def mean(self, reduce: Callable[[Tensor], Tensor] = lambda t: t, *, exact: bool = False) -> MeanEstimate:
        """Return the mean so far.

        Args:
            reduce: function that sums a tensor over processes.
            exact: True if no probes were used.

        Returns:
            The mean and its errors; NaN before the first unit with a label.
        """
        x, xx, xw, w, ww, count, spread = reduce(self.sums.clone()).tolist()
        if not w:
            return MeanEstimate(math.nan, math.nan, math.nan, math.nan)
        value = x / w
        if count < 2:
            error = math.nan
        else:
            error = math.sqrt(max(0.0, xx - 2 * value * xw + value**2 * ww) * count / (count - 1)) / w
        probes = 0.0 if exact else math.sqrt(spread) / w if spread == spread else math.nan
        rest = error**2 - (0.0 if math.isnan(probes) else probes**2)
        # If the estimate is negative, the probes hide the variance, which is then unknown.
        return MeanEstimate(value, error, math.sqrt(rest) if rest >= 0 else math.nan, probes)


class RandomSample:
    """A uniform random sample of fixed size from a stream.

    The sample does not depend on how the stream is split over processes.
    """

    def __init__(self, size: int = 4096) -> None:
        self.size = size
        self.keys = torch.zeros(0, dtype=torch.float64)
        self.values = torch.zeros(0, dtype=torch.float64)

    def add(self, values: Tensor, seed: int) -> None:
        """Add values.

        Args:
            values: shape ``(n,)``.
            seed: a number that belongs to these values only.
        """
        keys = torch.rand(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self._keep(torch.cat([self.keys, keys]), torch.cat([self.values, values.double().cpu()]))

    def merged(self, gather: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
        """Return the sample over all processes.

        Args:
            gather: function that concatenates tensors of one shape from all processes.
        """
        padding = torch.full((self.size - len(self.keys),), math.inf, dtype=torch.float64)
        pairs = gather(torch.stack([torch.cat([t, padding]) for t in (self.keys, self.values)], -1))
        pairs = pairs[pairs[:, 0].isfinite()]
        self._keep(pairs[:, 0], pairs[:, 1])
        return tuple(self.values.tolist())

    def _keep(self, keys: Tensor, values: Tensor) -> None:
        order = keys.argsort()[: self.size]
        self.keys, self.values = keys[order], values[order]
