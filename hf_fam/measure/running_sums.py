"""Means over a stream of items, with standard errors from items and from probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """A mean and its standard errors, see `records.LayerFlatness`."""

    value: float
    error: float
    items_error: float
    probes_error: float


class Moments:
    """``sum x / sum omega`` over units (items, or batches where items are coupled), in constant memory.

    x are contributions, omega their weights: 1 for an item, or its number of labeled tokens. The error is that of a
    ratio (the residuals are ``x - mean * omega``). Several probes of a unit give the part that is due to the probes.
    Units of weight 0 have no label and are not counted.

    Examples:
        >>> import torch
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.ones(2))  # two units, two probes each
        >>> mean = moments.mean()
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

    def mean(self, reduce: Callable[[Tensor], Tensor] = lambda t: t, *, exact: bool = False) -> Mean:
        """The mean so far.

        Args:
            reduce: sums over processes.
            exact: no probes were used.

        Returns:
            NaN everywhere as long as no unit with a label was added.
        """
        x, xx, xw, w, ww, count, spread = reduce(self.sums.clone()).tolist()
        if not w:
            return Mean(math.nan, math.nan, math.nan, math.nan)
        value = x / w
        if count < 2:
            total = math.nan
        else:
            total = math.sqrt(max(0.0, xx - 2 * value * xw + value**2 * ww) * count / (count - 1)) / w
        probes = 0.0 if exact else math.sqrt(spread) / w if spread == spread else math.nan
        known = 0.0 if math.isnan(probes) else probes
        return Mean(value, total, math.sqrt(max(0.0, total**2 - known**2)) if total == total else math.nan, probes)


class Sample:
    """A uniform random sample of fixed size from a stream, the same however the stream is split over processes."""

    def __init__(self, size: int = 4096) -> None:
        self.size = size
        self.keys = torch.zeros(0, dtype=torch.float64)
        self.values = torch.zeros(0, dtype=torch.float64)

    def add(self, values: Tensor, seed: int) -> None:
        """Add values.

        Args:
            values: shape ``(n,)``.
            seed: a number of these values alone.
        """
        keys = torch.rand(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self._keep(torch.cat([self.keys, keys]), torch.cat([self.values, values.double().cpu()]))

    def merged(self, gather: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
        """The sample over all processes.

        Args:
            gather: concatenates tensors of one shape from all processes.
        """
        padding = torch.full((self.size - len(self.keys),), math.inf, dtype=torch.float64)
        pairs = gather(torch.stack([torch.cat([t, padding]) for t in (self.keys, self.values)], -1))
        pairs = pairs[pairs[:, 0].isfinite()]
        self._keep(pairs[:, 0], pairs[:, 1])
        return tuple(self.values.tolist())

    def _keep(self, keys: Tensor, values: Tensor) -> None:
        order = keys.argsort()[: self.size]
        self.keys, self.values = keys[order], values[order]
