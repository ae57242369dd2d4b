"""Carry out a plan: each of its comparisons by `hf_fam.compare`, until it is decided or its seeds are used.

    python recipes/comparison/run.py --plan linear_text --data DATA --jobs 2

Interrupt it when you like; the same command carries on. See README.md here.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import transformers
from harness.plan import Comparison, find_plan, read_plan

from hf_fam.cli.live_table import LiveTable
from hf_fam.compare import ComparisonResult, compare
from hf_fam.compare.workers import leave_imports_alone

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", required=True, help="name of a file in plans, without .yaml, or a path")
    parser.add_argument("--data", type=Path, default=os.environ.get("HF_FAM_DATA"), help="default: $HF_FAM_DATA")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--budget", help="time at most for each comparison, such as 2h")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--cache", type=Path, default=Path("out/comparison"), help="folder for frozen features")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give --data FOLDER, or set HF_FAM_DATA")
    if not Path(options.data).is_dir():
        parser.error(f"--data {options.data}: there is no such folder")
    try:
        plan = find_plan(options.plan)
        comparisons = read_plan(plan, Path(options.data), options.cache)
    except ValueError as error:
        parser.error(str(error))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    leave_imports_alone()
    for number, comparison in enumerate(comparisons, 1):
        print(f"[{number}/{len(comparisons)}] {comparison.name}", flush=True)
        folder = options.results / plan.stem / comparison.name
        try:
            result = carry_out(comparison, folder, options.jobs, options.budget)
        except KeyboardInterrupt:
            sys.exit("interrupted: finished runs are kept, the same command carries on")
        result.save_json(folder / "result.json")
        print(result, flush=True)


def carry_out(comparison: Comparison, folder: Path, jobs: int = 1, budget: str | None = None) -> ComparisonResult:
    """Return what came out of a comparison, whose finished runs are kept in the folder."""
    table = LiveTable(sys.stdout)
    try:
        return compare(
            comparison.trainers,
            comparison.methods,
            test_dataset=comparison.trainers.test_dataset,
            metric=comparison.trainers.task.metric,
            jobs=jobs,
            budget=budget,
            output_dir=folder,
            on_progress=table.update,
            **comparison.options,
        )
    finally:
        table.close()


if __name__ == "__main__":
    main()
