"""Time, peak memory, kernels and floating-point operations of training steps on a device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[dict[str, Tensor]], None]


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    steps: Mapping[str, Step],
    batches: Sequence[dict[str, Tensor]],
    device: torch.device,
    block: int,
    seconds: float,
    most: int,
) -> dict[str, list[float]]:
    """Return seconds a step, a number for each round, in which every contender takes a block of steps.

    Within a block the host does not wait, as in a training. The order alternates.

    Args:
        steps: the contenders.
        batches: taken in turns.
        device: where they run.
        block: steps of a block.
        seconds: time of all rounds; at least three are made.
        most: most rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    for number in range(most):
        if number >= 3 and time.perf_counter() > end:
            break
        for name in [*steps] if number % 2 else reversed([*steps]):
            wait(device)
            started = time.perf_counter()
            for k in range(block):
                steps[name](batches[(number * block + k) % len(batches)])
            wait(device)
            times[name].append((time.perf_counter() - started) / block)
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the quartiles of some numbers."""
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    numbers: list[float] = torch.tensor(values, dtype=torch.float64).quantile(levels).tolist()
    return numbers


def peak_memory(step: Step, batch: dict[str, Tensor], device: torch.device) -> int | None:
    """Return the most bytes that are allocated during a step; None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(batch)
    wait(device)
    return torch.cuda.max_memory_allocated(device)


def operations(step: Step, batch: dict[str, Tensor]) -> int:
    """Return the floating-point operations of the products of a step."""
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return int(counter.get_total_flops())


def kernels(step: Step, batch: dict[str, Tensor], device: torch.device, top: int = 12) -> dict[str, Any]:
    """Return the number of kernels of a step, their time, and those that take longest; on a CPU operations."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        step(batch)
        wait(device)
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [(e.key, e.count, float(getattr(e, name))) for e in profile.key_averages()]
    found = [entry for entry in found if entry[2] > 0]
    longest = sorted(found, key=lambda entry: -entry[2])[:top]
    return {
        "count": sum(count for _, count, _ in found),
        "milliseconds": sum(time for *_, time in found) / 1e3,
        "longest": [[key[:80], count, time / 1e3] for key, count, time in longest],
    }


def rates(device: torch.device, tiny: bool) -> dict[str, float]:
    """Return operations a second of products in bfloat16 and float32, and bytes a second of a copy."""
    size, repeats = (256, 3) if tiny else (8192, 10)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = _median_seconds(functools.partial(torch.mm, left, right), device, repeats)
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    source = torch.randn(2**16 if tiny else 2**30, device=device)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device, repeats)
    return found


def _median_seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for number in range(repeats + 3):
        wait(device)
        started = time.perf_counter()
        function()
        wait(device)
        if number >= 3:
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
