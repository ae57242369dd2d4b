"""Decisions that all processes take together, so that no process continues or waits alone."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate.utils import gather_object


class NonFiniteFlatnessError(FloatingPointError):
    """kappa or a weight became infinite or NaN.

    Training stops before it is written into a checkpoint.
    """


class StoppedWithTheOthersError(NonFiniteFlatnessError, SystemExit):
    """`NonFiniteFlatnessError` in all processes except the main one.

    Only the main process prints the message. Uncaught, it ends the process with exit code 1 and without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 1


def sum_over_processes(numbers: list[float], accelerator: Any) -> list[float]:
    """Return the sums over all processes, in float64."""
    if accelerator.num_processes == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    total: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return total


def mean_over_processes(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the mean of a tensor over all processes, for code without an ``Accelerator``.

    Args:
        tensor: of one shape in every process.
        device: of the process group's tensors.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    total = tensor.to(device)
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def max_over_processes(verdict: int, accelerator: Any) -> int:
    """Return the largest verdict of all processes.

    Every process has to call this.
    """
    if accelerator.num_processes == 1:
        return verdict
    verdicts = accelerator.gather(torch.tensor([verdict], device=accelerator.device))
    return int(verdicts.max())


def stop_together(problem: str | None, accelerator: Any) -> None:
    """Stop every process if one of them has a problem.

    Every process has to call this.

    Args:
        problem: the problem of this process, or None.
        accelerator: accelerate's ``Accelerator``.

    Raises:
        NonFiniteFlatnessError: names the first problem and its process. All processes except the main one raise
            `StoppedWithTheOthersError`, so that the message is printed once.
    """
    if accelerator.num_processes == 1:
        if problem is not None:
            raise NonFiniteFlatnessError(problem)
        return
    if not max_over_processes(problem is not None, accelerator):
        return
    number, first_problem = next((k, p) for k, p in enumerate(gather_object([problem])) if p is not None)
    message = f"in process {number} of {accelerator.num_processes}, {first_problem}"
    error = NonFiniteFlatnessError if accelerator.is_main_process else StoppedWithTheOthersError
    raise error(message)


def refuse_unconnected_processes(args: Any) -> None:
    """Refuse processes that were started together but are not connected.

    Raises:
        ValueError: the processes are not connected; the message says what to do.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.world_size == 1 and started > 1 and "LOCAL_RANK" in os.environ:
        raise ValueError(
            f"{started} processes were started, but the Trainer runs alone in this one, so each process would train a "
            "separate model. On CPUs, set use_cpu=True (--use_cpu), because accelerate's launcher does not pass it on. "
            "On GPUs, find out why torch.cuda.is_available() is False."
        )
