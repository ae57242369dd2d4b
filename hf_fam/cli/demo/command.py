"""``hf-fam demo``: its arguments, and which of the two demos it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without heavy imports."""
    add = parser.add_argument
    add("--output_dir", type=Path, help="folder for results (default: out/demo, or out/demo_frozen)")
    add("--seed", type=int, default=0, help="seed of both runs, or the first of several seeds (default: 0)")
    add("--model", type=Path, help="folder of another encoder with a tokenizer (default: all-MiniLM-L6-v2)")
    add(
        "--frozen_trunk",
        action="store_true",
        help="train on stored sentence embeddings: a linear classifier with FAM's defaults, and two layers with FAM at "
        "the hidden one and lambda 0.01; five seeds, with correct labels and with a fifth of them wrong",
    )
    add("--quick", action="store_true", help="a quick check with 5 intents and 3 epochs; its numbers mean nothing")


def run(options: argparse.Namespace) -> None:
    """Run one of the two demos.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: the demo cannot run; the message is a sentence.
    """
    import transformers

    from .fine_tuning import DemoSettings, run_demo
    from .frozen import FrozenSettings, run_frozen_demo

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # the bar of loading weights; the training keeps its own
    settings_class, run_settings = (
        (FrozenSettings, run_frozen_demo) if options.frozen_trunk else (DemoSettings, run_demo)
    )
    make_settings: Any = settings_class.quick if options.quick else settings_class
    folder = {"output_dir": options.output_dir} if options.output_dir else {}  # each demo has its own default
    run_settings(make_settings(seed=options.seed, model=options.model, **folder))
