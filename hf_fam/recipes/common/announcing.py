"""What a training will do, printed before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Trainer

from ...inputs.text import one_line
from ...methods import method_called
from .expected_time import as_duration, number_of_steps, seconds_of_training
from .run import Run


def print_summary(run: Run, trainer: Trainer) -> None:
    """Print what the training will do, in the main process.

    Args:
        run: the run.
        trainer: its ``Trainer``.
    """
    is_fitted = not method_called(run.method.method).has_learning_rate
    seconds = None if is_fitted else seconds_of_training(trainer)
    if not trainer.is_world_process_zero():
        return
    flatness = getattr(trainer, "relative_flatness", None)
    lines = data_and_model(run)
    if flatness is not None:
        strength = run.args.fam_lambda if run.args.fam_lambda is not None else flatness.default_strength
        lines.append(("method", f"{run.method.method}, layer {flatness.layer.name}, lambda {strength:g}"))
    else:
        lines.append(("method", run.method.method))
    processes = f", {trainer.args.world_size} processes" if trainer.args.world_size > 1 else ""
    duration = "" if seconds is None else f", {as_duration(seconds)}"
    steps = "fit of the head " if is_fitted else f"{number_of_steps(trainer):,} steps "
    lines.append(("training", f"{steps}on {trainer.args.device}{processes}{duration}"))
    print_lines(lines)


def data_and_model(run: Run) -> list[tuple[str, str]]:
    """Return the lines about the data and the model of a run, with their headings."""
    lines = [] if run.summary is None else run.summary.lines()
    return [*lines, ("model", f"{run.model_args.model_name_or_path} ({type(run.model).__name__})")]


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print lines with their headings in a column of their own."""
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name.ljust(width)}  {one_line(text, 200)}" for name, text in lines), flush=True)
