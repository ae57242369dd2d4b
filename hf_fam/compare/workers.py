"""Execute runs one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
import transformers

from .journal import Record
from .runs import Run
from .training import Task, execute

# The task of a worker process.
_TASK: list[Task] = []


class Workers:
    """Executes runs.

    Args:
        task: what all runs share.
        jobs: number of processes; 1: this one.

    Raises:
        ValueError: the task cannot be sent to other processes.
    """

    def __init__(self, task: Task, jobs: int) -> None:
        self._task, self.jobs = task, jobs
        self._pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            try:
                pickle.dumps(task)
            except Exception as error:
                raise ValueError(
                    f"jobs={jobs}: other processes need make_trainer, test_dataset and metric to be importable, which "
                    f"means defined at the top of a module ({error}). Move them there, or set jobs=1."
                ) from error

    def run(self, runs: Iterable[Run], is_time_left: Callable[[Run], bool]) -> Iterator[tuple[Run, Record]]:
        """Yield runs with their records, in the order in which they end.

        Args:
            runs: the runs.
            is_time_left: asked before each run; once it is False, no run is started.
        """
        if self.jobs == 1:
            for run in runs:
                if not is_time_left(run):
                    return
                yield run, execute(self._task, run)
            return
        yield from self._run_in_pool(iter(runs), is_time_left)

    def _run_in_pool(self, runs: Iterator[Run], is_time_left: Callable[[Run], bool]) -> Iterator[tuple[Run, Record]]:
        if self._pool is None:
            threads = max(torch.get_num_threads() // self.jobs, 1)
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, context, _start, (self._task, threads))
        pending: dict[Future[Record], Run] = {}
        is_open = True
        while is_open or pending:
            while is_open and len(pending) < self.jobs:
                run = next(runs, None)
                if run is None or not is_time_left(run):
                    is_open = False
                else:
                    pending[self._pool.submit(_execute, run)] = run
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                run = pending.pop(future)
                try:
                    yield run, future.result()
                except BrokenProcessPool as error:
                    raise ValueError(
                        "a worker process ended abruptly, often because memory ran out: try fewer jobs. Finished runs "
                        "are kept, and the same call carries on."
                    ) from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, *details: Any) -> None:
        """End the processes; after an error also those that are under way."""
        if self._pool is None:
            return
        if kind is not None:
            for process in multiprocessing.active_children():
                if process.name.startswith("Spawn"):
                    process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _start(task: Task, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(RuntimeError):
        torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _TASK[:] = [task]
    leave_imports_alone()


def _end_with_parent() -> None:
    """End this process when the main process is gone, also if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def leave_imports_alone() -> None:
    """Keep the garbage collection, a full one in every training, from looking at what the imports made.

    It would take longer than training a small head. Call it in a process of one's own only.
    """
    gc.freeze()


def _execute(run: Run) -> Any:
    return execute(_TASK[0], run)
