"""The command ``hf-fam``: its parser, and the dispatch to the subcommands.

Only the subcommands import torch and transformers, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence

from .._version import __version__
from ..inputs.flags import same_flag
from ..inputs.packages import MissingPackageError
from ..inputs.text import LONGEST_MESSAGE, LONGEST_PATH, first_line, one_line, quote
from ..processes.leaving import is_lost_connection
from ..recipes import TASKS
from ..recipes.common.flag_names import UsageError, flag_names
from . import compare_command, layers_command, measure_command, predict_command, train_command
from .argument_types import OneLineParser
from .as_typed import as_typed
from .demo import command as demo_command
from .quiet import short_warnings
from .word_order import what_to_type

# Status of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130

# Wait of a process that has lost another one. Its launcher notices the other one first, tells of it, and ends this one.
SECONDS_FOR_THE_LAUNCHER = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: arguments without the program's name; None: those of the command line.

    Returns:
        The exit status: 2 for flags that do not exist or cannot be parsed, 1 for another error that was explained on
        stderr, 130 after Ctrl-C.

    Raises:
        SystemExit: the arguments cannot be parsed, or ``--help`` or ``--version`` was given.

    Examples:
        >>> main(["layers", "no/such/folder"])
        1
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- for the rest of the program
    try:
        try:
            return run(words)
        finally:
            sys.stdout.flush()  # an error of Python's own flush at the end would have no sentence
    except BrokenPipeError:  # of `hf-fam predict ... | head`
        discard_output()
        return 1
    except OSError as error:  # such as a full disk
        discard_output()
        path = "" if error.filename is None else f"{quote(error.filename, LONGEST_PATH)}: "
        return refuse(words[0] if words else "--help", f"{path}{error.strerror or first_line(error)}.")


def discard_output() -> None:
    """Discard what was printed and not written yet, and what is printed from now on."""
    with contextlib.suppress(OSError, ValueError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(words: list[str]) -> int:
    """Run the command, with errors that are explained on stderr.

    Args:
        words: arguments without the program's name.
    """
    parser = make_parser()
    if not words:
        parser.print_help()
        return 0
    meant = what_to_type(words)
    if meant is not None:
        parser.error(meant)
    options = parser.parse_args(words)
    options.arguments = words

    def in_words_of_a_shell(error: object) -> str:
        return as_typed(str(error), typed_names(options))

    try:
        with short_warnings(in_words_of_a_shell):
            options.run(options)
    except (MissingPackageError, ValueError) as error:
        return refuse(options.command, in_words_of_a_shell(error), 2 if isinstance(error, UsageError) else 1)
    except FloatingPointError as error:  # of a training that diverged
        if isinstance(error, SystemExit):  # of a process that is not to print
            raise
        return refuse(options.command, in_words_of_a_shell(error), longest=1000)
    except KeyboardInterrupt as error:
        return refuse(options.command, str(error) or "stopped.", status=INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if is_lost_connection(error):
            time.sleep(SECONDS_FOR_THE_LAUNCHER)
            return refuse(options.command, "another process of this training has ended: see its message.")
        if not is_out_of_memory(error):
            raise
        return refuse(options.command, out_of_memory(options.command, str(error)))
    return 0


def typed_names(options: argparse.Namespace) -> list[str]:
    """Return the names of the flags of a command; beside a YAML file, which has names without dashes, the typed ones.

    Args:
        options: the parsed command line.
    """
    typed = [same_flag(word.partition("=")[0])[2:] for word in options.arguments if word.startswith("--")]
    if options.command not in ("train", "compare"):
        return [*options.flags, *typed]
    given = getattr(options, f"{options.command}_arguments")
    if given and not given[0].startswith("-"):
        return typed
    own = compare_command.make_parser(options.task).flags
    return [*typed, *own, *(name for task in TASKS for name in flag_names(task))]


def refuse(command: str, reason: str, status: int = 1, longest: int = LONGEST_MESSAGE) -> int:
    """Print why a command ends, in one line, and return its status."""
    print(one_line(f"hf-fam {command}: {reason}", longest), file=sys.stderr)
    return status


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an error of torch or Python that says that there is no memory left.

    Examples:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("size mismatch"))
        (True, False)
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def out_of_memory(command: str, reason: str) -> str:
    """Return the message about a lack of memory, with what to do."""
    if command in ("train", "compare", "demo"):
        remedy = (
            "halve --per_device_train_batch_size and double --gradient_accumulation_steps, which trains the same, or "
            "cut texts by --max_seq_length"
        )
    else:
        remedy = "give a smaller --batch_size, or cut texts by --max_length"
    where = "the GPU is" if "cuda" in reason.lower() else "this machine is"
    return f"{where} out of memory: {remedy}."


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = OneLineParser(
        prog="hf-fam",
        description="Flatness-aware fine-tuning: change Trainer to FAMTrainer.",
        epilog="`hf-fam COMMAND --help` tells more.",
    )
    parser.add_argument("--version", action="version", version=f"hf-fam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="fine-tune a model on your own data by one of the recipes",
        description="Fine-tune a model by one of the recipes, on data of your own or from the Hub.",
    )
    train_command.add_arguments(train)
    train.set_defaults(run=lambda options: train_command.run(options.task, options.train_arguments))

    compare = commands.add_parser(
        "compare",
        help="compare training methods on your own data, over several seeds",
        description="Compare training methods with plain training on your own data, over several seeds.",
    )
    compare_command.add_arguments(compare)
    compare.set_defaults(run=lambda options: compare_command.run(options.task, options.compare_arguments))

    predict = commands.add_parser(
        "predict",
        help="write the predictions of a trained model for a file as csv",
        description="Write the class and the probabilities of every text, word or image of a file, as csv.",
    )
    predict_command.add_arguments(predict)
    predict.set_defaults(run=predict_command.run)

    layers = commands.add_parser(
        "layers",
        help="list the layers of a model that fam_layer can name, with estimator and expected cost",
        description="List the layers of a model that fam_layer can name. Only its config.json is read, no weights.",
    )
    layers_command.add_arguments(layers)
    layers.set_defaults(run=layers_command.run)

    measure = commands.add_parser(
        "measure",
        help="measure how flat a trained model is, layer by layer, with a report",
        description="Measure the relative flatness of the layers of a trained model over a data set.",
    )
    measure_command.add_arguments(measure)
    measure.set_defaults(run=lambda options: measure_command.run(options, options.arguments))

    demo = commands.add_parser(
        "demo",
        help="compare six methods on data that come with hf_fam, offline (a few minutes)",
        description="Compare six methods on 30 intents of Banking77 with 20 % label noise, on the frozen "
        "backbone of all-MiniLM-L6-v2; offline.",
    )
    demo_command.add_arguments(demo)
    demo.set_defaults(run=demo_command.run)
    for command in (train, compare, predict, layers, measure, demo):
        command.set_defaults(flags=command.flags)
    return parser
