"""One step's batch in the parts that micro-batches and processes make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Part:
    """One micro-batch of a critic step in one process.

    Args:
        first_item: number of its first sample in the step.
        share: the weight of its mean in what this process contributes, so that the mean over processes of the sum over
            micro-batches is the mean over all samples.
        real: of shape (n, ...).
        generated: of the same shape.
        points: where the critic's gradient is penalized; None: not in this step.
    """

    first_item: int
    share: float
    real: Tensor
    generated: Tensor
    points: Tensor | None = None


def cut_of_step(sizes: Sequence[int], accelerator: Any) -> list[tuple[int, float]]:
    """First item and share of each of this process's micro-batches.

    Samplers hand out items micro-batch by micro-batch, and in each process by process.

    Args:
        sizes: samples in each of them.
        accelerator: accelerate's ``Accelerator``; with several processes, all have to ask.

    Examples:
        >>> import types
        >>> cut_of_step([4, 2], types.SimpleNamespace(num_processes=1, process_index=0))
        [(0, 0.6666666666666666), (4, 0.3333333333333333)]
    """
    processes, own = accelerator.num_processes, accelerator.process_index
    counts = torch.tensor(sizes).unsqueeze(0)
    if processes > 1:
        counts = accelerator.gather(counts.to(accelerator.device)).cpu()
    in_order = counts.T.flatten()  # micro-batches by processes
    firsts = (in_order.cumsum(0) - in_order).reshape(len(sizes), processes)[:, own].tolist()
    total = int(in_order.sum())
    return [(first, size * processes / total) for first, size in zip(firsts, sizes, strict=True)]


def deviation(parts: Sequence[Tensor], accelerator: Any) -> Tensor:
    """The population's standard deviation of all values of a step's batch, over micro-batches and processes."""
    values = torch.cat([part.detach().double().flatten() for part in parts])
    sums = torch.stack([torch.ones_like(values).sum(), values.sum()])
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums, reduction="sum")
    square = (values - sums[1] / sums[0]).square().sum()
    if accelerator.num_processes > 1:
        square = accelerator.reduce(square, reduction="sum")
    return (square / sums[0]).sqrt().to(parts[0].dtype)
