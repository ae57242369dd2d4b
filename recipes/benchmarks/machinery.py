"""What `hf-fam compare` costs beside the trainings that it compares.

    python recipes/benchmarks/machinery.py                # heads on a frozen MiniLM, as in `hf-fam demo`
    python recipes/benchmarks/machinery.py --case full    # full fine-tuning of MiniLM, 300 texts

Both compare plain training and FAM on the demo's data, with six seeds and two settings each. Every second of the
comparison is counted once. Training, prediction and making the Trainer are what a loop of one's own needs, too; the
machinery is the rest: splits, hooks of the methods, scores, journal, statistics.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer

from hf_fam.cli.demo.data import write_files
from hf_fam.cli.demo.model import encoder_folder
from hf_fam.compare import compare
from hf_fam.compare.journal import Journal
from hf_fam.compare.workers import leave_imports_alone
from hf_fam.recipes import with_defaults
from hf_fam.recipes.common.comparison import RecipeTrainers

CASES = {"frozen": ("--freeze_backbone",), "full": ("--num_train_epochs", "3")}
METHODS = ("plain", "fam")
TRAINING, PREDICTION, MAKING, WRITING = "training", "prediction", "making the Trainer", "writing the journal"


class Stopwatch:
    """Seconds spent in some functions; those inside another one are counted there."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._is_running = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted under a name."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._is_running:
                return function(*args, **kwargs)
            self._is_running, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self._is_running = False

        return run


def measure(case: str, seeds: int, folder: Path) -> tuple[float, int, Counter[str]]:
    """Return the seconds of a comparison, the number of its runs, and the seconds by what they went to."""
    train, test = write_files(folder)
    arguments = [
        "--train_file",
        str(train),
        "--test_file",
        str(test),
        "--model_name_or_path",
        str(encoder_folder(None)),
    ]
    arguments += [*CASES[case], "--cache_dir", str(folder / "cache")]
    trainers = RecipeTrainers("text_classification", tuple(with_defaults("text_classification", arguments)), METHODS)
    trainers(0)  # data are read, and features computed, once
    watch = Stopwatch()
    own = Trainer.train, Trainer.predict, Journal.append
    Trainer.train, Trainer.predict, Journal.append = (  # type: ignore[method-assign]
        watch.timed(name, function) for name, function in zip((TRAINING, PREDICTION, WRITING), own, strict=True)
    )
    start = time.perf_counter()
    try:
        result = compare(
            watch.timed(MAKING, trainers),
            METHODS,
            test_dataset=trainers.test_dataset,
            scoring_dataset=trainers.scoring_dataset,
            seeds=seeds,
            grid_size=2,
            output_dir=folder / "runs",
        )
    finally:
        Trainer.train, Trainer.predict, Journal.append = own  # type: ignore[method-assign]
    return time.perf_counter() - start, result.runs, watch.seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="frozen")
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    leave_imports_alone()
    with tempfile.TemporaryDirectory() as folder:
        total, runs, seconds = measure(options.case, options.seeds, Path(folder))
    print(f"{options.case}: {runs} runs, {total:.1f} s, torch {torch.__version__}, {torch.get_num_threads()} threads")
    machinery = total - sum(seconds.values()) + seconds.pop(WRITING)
    training = seconds[TRAINING]
    for name, value in [*seconds.most_common(), ("machinery", machinery)]:
        per_run, share = 1000 * value / runs, 100 * value / training
        print(f"{name:20} {value:8.2f} s {per_run:8.1f} ms a run {share:7.1f} % of training")


if __name__ == "__main__":
    main()
