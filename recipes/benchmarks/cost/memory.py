"""Peak memory of the first steps of a training, in a process of its own.

Two numbers, both above what was there once the model was built (so gradients, optimizer state and activations): the
peak of the resident set, and the peak of torch's own allocations by its profiler, which is exact. For the former, glibc
gives freed blocks back to the system at once (MALLOC_MMAP_THRESHOLD_); as it comes, it keeps a third more than torch
ever asked for, give or take a tenth.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[dict[str, Tensor]], None]


def measure_peaks(make: Callable[[], Step], batches: Sequence[dict[str, Tensor]], profiled: int) -> dict[str, float]:
    """Peaks of this process above what it held when the model was built, in MB; call it in a fresh process.

    Args:
        make: builds the model and what takes its steps.
        batches: one a step.
        profiled: how many steps torch's profiler watches.
    """
    steps = make()
    before = peak_resident()
    for batch in batches:
        steps(batch)
    resident = peak_resident() - before
    del steps
    steps = make()

    def train() -> None:
        for batch in batches[:profiled]:
            steps(batch)

    return {"rss_mb": resident / 2**20, "torch_mb": peak_allocation(train) / 2**20}


def peak_resident() -> int:
    """Largest resident set of this process so far, in bytes."""
    with contextlib.suppress(OSError, StopIteration):  # Linux: getrusage would also count the parent's, before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_allocation(function: Callable[[], None]) -> int:
    """Largest sum of torch's allocations while ``function`` runs, in bytes, counted from what is held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def in_fresh_process(script: str, arguments: Sequence[str]) -> dict[str, float]:
    """The JSON that a script prints in its last line, with memory that is given back at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    command = [sys.executable, script, *arguments, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
