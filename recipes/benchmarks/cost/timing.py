"""Time ratios from interleaved steps: whatever else the machine does hits both."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Step = Callable[[dict[str, Tensor]], None]


def interleaved(
    timed: Sequence[Step],
    batches: Sequence[dict[str, Tensor]],
    pairs: int,
    warmup: int,
    before: Step | None = None,
) -> Tensor:
    """Seconds of every step, shape ``(len(timed), pairs)``: one step of each on the same batch, the order alternating.

    Args:
        timed: what takes the steps.
        batches: taken in turns.
        pairs: rounds that count.
        warmup: rounds before them.
        before: called before every round, not timed.
    """
    rounds = []
    gc.collect()
    for k in range(warmup + pairs):
        batch = batches[k % len(batches)]
        if before is not None:
            before(batch)
        seconds = {}
        for step in timed if k % 2 else reversed(timed):
            start = time.perf_counter()
            step(batch)
            seconds[step] = time.perf_counter() - start
        rounds.append([seconds[step] for step in timed])
    return torch.tensor(rounds[warmup:], dtype=torch.float64).T


def compare(times: Tensor) -> dict[str, Any]:
    """What the second row costs against the first, the ratio taken within each pair."""
    plain, other = times[0], times[1]
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    q25, median, q75 = (other / plain).quantile(quartiles).tolist()
    return {
        "pairs": len(plain),
        "plain_ms": plain.median().item() * 1e3,
        "extra_ms": (other - plain).median().item() * 1e3,
        "time_ratio": median,
        "time_q25": q25,
        "time_q75": q75,
        "total_ratio": (other.sum() / plain.sum()).item(),
    }
