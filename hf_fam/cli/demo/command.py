"""``hf-fam demo``: a comparison of methods on data that come with hf_fam, offline."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from ...inputs.paths import require_writable_folder

METHODS = ("plain", "fam", "weight_decay", "bi_tempered", "logistic_regression", "flat_logistic_regression")
QUICK = ("--seeds", "2", "--grid_size", "1", "--tuning_repeats", "1", "--num_train_epochs", "2")
QUICK_INTENTS = 5
# Seeds of each setting that is tried: with 20 % label noise, the validation score of one says little.
TUNING_REPEATS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without heavy imports."""
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("out/demo"), help="folder for results (default: out/demo)")
    add("--model", type=Path, help="folder of another encoder with a tokenizer (default: all-MiniLM-L6-v2)")
    add(
        "--jobs",
        type=int,
        default=min(os.cpu_count() or 1, 4),
        help="runs at the same time (default: one per core, at most 4)",
    )
    add("--quick", action="store_true", help="a quick check with 5 intents and 2 epochs; its numbers mean nothing")


def run(options: argparse.Namespace) -> None:
    """Write the data, print the command that compares methods on them, and run it.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: the demo cannot run; the message is a sentence.
    """
    from ..compare_command import run as compare
    from .data import write_files
    from .model import encoder_folder

    require_writable_folder("--output_dir", str(options.output_dir))
    model = encoder_folder(options.model)
    train, test = write_files(options.output_dir, QUICK_INTENTS if options.quick else None)
    arguments = [
        *("--train_file", str(train), "--test_file", str(test), "--model_name_or_path", str(model)),
        *("--freeze_backbone", "--methods", *METHODS, "--tuning_repeats", str(TUNING_REPEATS)),
        *("--jobs", str(options.jobs), "--output_dir", str(options.output_dir / "runs")),
        *("--cache_dir", str(options.output_dir / "cache"), "--report", str(options.output_dir / "report.html")),
        *(QUICK if options.quick else ()),
    ]
    print("30 intents of Banking77, 10 questions each, 20 % label noise; MiniLM is frozen. The command:")
    print(shlex.join(["hf-fam", "compare", "text_classification", *arguments]) + "\n", flush=True)
    compare("text_classification", arguments)
