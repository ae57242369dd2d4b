"""Carry out a plan: every run that is not finished yet, each appended to the results when it is.

    python recipes/comparison/run.py --plan first_strengths --data DATA --jobs 1

Interrupt it when you like; the same command carries on. See README.md here.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import transformers
from harness.execute import circumstances, execute
from harness.plan import Run, find_plan, key, read_plan
from harness.results import append_result, merge_journals, read_results

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plan", required=True, help="name of a file in plans or plans/archive, without .yaml, or a path"
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("HF_FAM_DATA"), help="default: $HF_FAM_DATA")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each (default 1)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--cache", type=Path, default=Path("out/comparison"), help="folder for frozen embeddings")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give --data FOLDER, or set HF_FAM_DATA")

    try:
        plan = find_plan(options.plan)
    except FileNotFoundError as error:
        parser.error(str(error))
    runs = read_plan(plan)
    merge_journals(options.results)  # of a process that was killed
    finished = {key(record) for record in read_results(options.results)}
    wanted = list({key(run.describe()): run for run in runs}.items())
    todo = [run for name, run in wanted if name not in finished]
    print(f"{plan.name}: {len(wanted)} runs, {len(todo)} to do")
    now, start = circumstances(), time.perf_counter()
    try:
        for number, record in enumerate(carry_out(todo, options), 1):
            append_result(options.results, plan.stem, {**record, **now})
            left = (time.perf_counter() - start) / number * (len(todo) - number)
            print(f"[{number}/{len(todo)}, {left / 60:.0f} min left] {line(record)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept, the same command carries on")
    finally:
        merge_journals(options.results)


def carry_out(runs: list[Run], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The records, in the order in which they are finished."""
    quiet(options.threads)
    if options.jobs == 1:
        for run in runs:
            yield execute(run, options.data, options.cache)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=quiet, initargs=(options.threads,)) as pool:
        submitted = [pool.submit(execute_unless_left, os.getpid(), run, options) for run in runs]
        for future in as_completed(submitted):
            yield future.result()


def execute_unless_left(parent: int, run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Workers outlive a parent that was killed, and would go on with runs that nobody writes down."""
    if os.getppid() != parent:
        os._exit(1)
    return execute(run, options.data, options.cache)


def quiet(threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.captureWarnings(True)


def line(record: dict[str, Any]) -> str:
    configuration = " ".join(f"{k}={v}" for k, v in record["configuration"].items())
    name = f"{record['regime']} {record['task']} {record['method']} {configuration} seed={record['seed']}"
    if "diverged" in record:
        return f"{name}: diverged"
    test, metric = record["test"], record["metric"]
    return f"{name}: {metric} {test[metric]:.4f} NLL {test['nll']:.3f} {record['seconds']:.1f} s"


if __name__ == "__main__":
    main()
