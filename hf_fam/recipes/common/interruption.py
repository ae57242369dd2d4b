"""Ctrl-C during a training: the step ends, a checkpoint is saved, and the command says how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ...inputs.text import LONGEST_PATH, first_line, one_line, quote
from ...processes.checkpoints import newest_whole_checkpoint
from .command import COMMAND_SCRIPTS, drop_flags

# Status of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


class StopAtStep(TrainerCallback):
    """Ends the training after the step in which Ctrl-C was pressed, with a checkpoint.

    A second Ctrl-C ends it at once. Several processes would stop at different steps, so there Ctrl-C acts at once.

    Attributes:
        is_asked: whether Ctrl-C was pressed.
        has_begun: whether the training began, after a checkpoint was loaded.
    """

    def __init__(self) -> None:
        self.is_asked = self.has_begun = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over Ctrl-C, unless somebody else did."""
        self.has_begun = True
        is_main = threading.current_thread() is threading.main_thread()  # others may set no handler
        if is_main and args.world_size == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._ask)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop and save if Ctrl-C was pressed."""
        if self.is_asked:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give Ctrl-C back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _ask(self, number: int, frame: Any) -> None:
        self.is_asked = True
        self.restore()
        print("\nStopping after this step, with a checkpoint. Ctrl-C again stops at once.", file=sys.stderr)


def train_until_stopped(trainer: Trainer, train: Callable[[], Any]) -> Any:
    """Return what a training returns, or end the program if Ctrl-C was pressed.

    Args:
        trainer: the ``Trainer``.
        train: starts its training.

    Raises:
        SystemExit: Ctrl-C was pressed; the step and the way to go on are printed, and the status is 130.
        ValueError: the checkpoint to resume from is of another training.
    """
    callback = StopAtStep()
    trainer.add_callback(callback)
    try:
        result = train()
    except KeyboardInterrupt:
        callback.is_asked = True
        result = None
    except Exception as error:  # of many kinds, of torch
        checkpoint = trainer.args.resume_from_checkpoint
        is_of_torch = not isinstance(error, (ValueError, MemoryError, torch.OutOfMemoryError))
        is_of_torch |= "loaded state dict" in str(error)
        if checkpoint is None or callback.has_begun or not is_of_torch:
            raise
        raise ValueError(
            f"resume_from_checkpoint={quote(checkpoint, LONGEST_PATH)}: the checkpoint does not fit this training "
            f"({first_line(error)}): give the flags of the training that saved it, or another output_dir."
        ) from error
    finally:
        callback.restore()
    is_over = result is not None and trainer.state.global_step >= trainer.state.max_steps
    if not callback.is_asked or is_over:
        return result
    if trainer.is_world_process_zero():
        said = stopped(trainer.state.global_step, str(trainer.args.output_dir), processes=trainer.args.world_size)
        print(said, file=sys.stderr)
    raise SystemExit(INTERRUPTED)


def stopped(step: int, output_dir: str, argv: Sequence[str] | None = None, processes: int = 1) -> str:
    """Return where a training stopped, and the command that goes on.

    Args:
        step: number of steps that were done.
        output_dir: folder of the checkpoints.
        argv: script and flags of the process; its own by default.
        processes: number of processes, whose launcher is not known here.
    """
    try:
        checkpoint = newest_whole_checkpoint(output_dir, warn=False)
    except ValueError:
        checkpoint = None
    if checkpoint is None:
        return f"Stopped at step {step}; no checkpoint was saved, so the same command starts again."
    if processes > 1:
        return (
            f"Stopped at step {step}, at once, as several processes do. Resume from {Path(checkpoint).name} by the same"
            " launch with --resume_from_checkpoint last."
        )
    script, *flags = sys.argv if argv is None else argv
    flags = drop_flags(flags, ["resume_from_checkpoint"])
    is_command = any(script.endswith(name) for name in COMMAND_SCRIPTS)
    words = [*(["hf-fam"] if is_command else [script]), *flags, "--resume_from_checkpoint", "last"]
    return f"Stopped at step {step}; resume with\n  {one_line(shlex.join(words), 2000)}"
