"""The micro-batches of one step, in this process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """One micro-batch of a critic step in one process.

    Args:
        first_item: number of its first sample in the step.
        share: the weight of its mean in the contribution of this process. The mean over processes of the sum over
            micro-batches is then the mean over all samples.
        real: of shape (n, ...).
        labels: of shape (n,); None for networks without labels.
        generated: generated samples of the same shape and labels; None before they are drawn.
        points: points at which the critic's gradient is penalized; None: no penalty in this step.
    """

    first_item: int
    share: float
    real: Tensor
    labels: Tensor | None = None
    generated: Tensor | None = None
    points: Tensor | None = None


def micro_batch_shares(sizes: Sequence[int], accelerator: Any) -> list[tuple[int, float]]:
    """Return first item and share of each micro-batch of this process.

    Samplers assign items micro-batch by micro-batch, and process by process within each.

    Args:
        sizes: number of samples in each micro-batch.
        accelerator: accelerate's ``Accelerator``. With several processes, every process has to call this.

    Examples:
        >>> import types
        >>> micro_batch_shares([4, 2], types.SimpleNamespace(num_processes=1, process_index=0))
        [(0, 0.6666666666666666), (4, 0.3333333333333333)]
    """
    processes, own = accelerator.num_processes, accelerator.process_index
    if processes == 1:
        firsts = itertools.accumulate(sizes, initial=0)
        return [(first, size / sum(sizes)) for first, size in zip(firsts, sizes, strict=False)]
    counts = accelerator.gather(torch.tensor(sizes).unsqueeze(0).to(accelerator.device)).cpu()
    in_order = counts.T.flatten()  # micro-batches by processes
    firsts = (in_order.cumsum(0) - in_order).reshape(len(sizes), processes)[:, own].tolist()
    total = int(in_order.sum())
    return [(first, size * processes / total) for first, size in zip(firsts, sizes, strict=True)]


def standard_deviation(micro_batches: Sequence[Tensor], accelerator: Any) -> Tensor:
    """Return the standard deviation of all values of a step's batch.

    It is that of the population, over micro-batches and processes.
    """
    values = torch.cat([samples.detach().double().flatten() for samples in micro_batches])
    sums = torch.stack([torch.ones_like(values).sum(), values.sum()])
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums, reduction="sum")
    square = (values - sums[1] / sums[0]).square().sum()
    if accelerator.num_processes > 1:
        square = accelerator.reduce(square, reduction="sum")
    return (square / sums[0]).sqrt().to(micro_batches[0].dtype)
