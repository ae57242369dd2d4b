"""What a command or a call does with an input: refuse it in one line, go on, or break."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import transformers

from hf_fam.cli import main as cli
from hf_fam.processes.decisions import NonFiniteFlatnessError

LONGEST = 300
# An argument as Python has it, outside quotes; a shell has flags and no None.
QUOTED = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|`[^`]*`|\(.*""")
PYTHON = re.compile(r"(?<![\w.-])[a-z]+(?:_[a-z]+)*=|\bNone\b")


class TrainingBegan(BaseException):
    """Everything was accepted."""


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        kind: refused, accepted, untidy or traceback; the table's script adds crash and hang.
        said: the message, or what is wrong with it.
    """

    kind: str
    said: str


def of_command(arguments: Sequence[str], names: Sequence[str], watched: Path | None, trains: bool = False) -> Outcome:
    """Run ``hf-fam`` in this process, up to the point where a training would begin.

    Args:
        arguments: the command line.
        names: words of which a refusal must contain one.
        watched: a folder in which a refused command must write nothing but its cache.
        trains: let the training run.
    """
    before = contents(watched)
    error = io.StringIO()
    try:
        with quiet(error), contextlib.nullcontext() if trains else stopped_training():
            status = cli.main(list(arguments))
    except TrainingBegan:
        return Outcome("accepted", "the training began")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except (Exception, RecursionError) as raised:
        return Outcome("traceback", f"{type(raised).__name__}: {raised}"[:500])
    if status == 0:
        return Outcome("accepted", "status 0")
    verdict = judge(error.getvalue(), names, contents(watched) - before, status)
    has_file = any(word.endswith(".yaml") for word in arguments)  # which has names without dashes
    if verdict.kind == "refused" and not has_file and PYTHON.search(QUOTED.sub("", verdict.said)):
        return Outcome("untidy", f"names of Python: {verdict.said}")
    return verdict


def judge(printed: str, names: Sequence[str], written: set[str], status: int) -> Outcome:
    """Judge a refusal of a command by what was printed and written."""
    if status not in (1, 2):
        return Outcome("untidy", f"status {status}")
    lines = printed.rstrip("\n").split("\n")
    start = max((k for k, line in enumerate(lines) if line.startswith("hf-fam")), default=None)
    if any(line.startswith("usage:") for line in lines):
        return Outcome("untidy", "usage in front of the refusal")
    if "Traceback" in printed or start is None:
        return Outcome("traceback", printed[-500:])
    return of_message(lines[start:], names) if not written else Outcome("untidy", f"written: {sorted(written)}")


def of_message(lines: Sequence[str], names: Sequence[str]) -> Outcome:
    """Judge the text of a refusal."""
    text = "\n".join(lines)
    if len(lines) > 1:
        return Outcome("untidy", f"{len(lines)} lines: {text[:500]}")
    if len(text) > LONGEST:
        return Outcome("untidy", f"{len(text)} characters: {text[:500]}")
    if not text.isprintable():
        return Outcome("untidy", f"unprintable: {text!r}")
    if names and not any(name in text for name in names):
        return Outcome("untidy", f"names none of {', '.join(names)}: {text}")
    return Outcome("refused", text)


def of_call(call: Callable[[], object], names: Sequence[str]) -> Outcome:
    """Judge what a Python function does: a refusal is a ValueError or a TypeError with one line."""
    try:
        with quiet(io.StringIO()):
            call()
    except (ValueError, TypeError) as error:
        return of_message(str(error).split("\n"), names)
    except (Exception, RecursionError) as error:
        return Outcome("traceback", f"{type(error).__name__}: {error}"[:500])
    return Outcome("accepted", "")


@contextlib.contextmanager
def stopped_training() -> Iterator[None]:
    """Let a training, or an evaluation without one, begin and not go on."""

    def stop(*args: object, **kwargs: object) -> None:
        raise TrainingBegan

    with contextlib.ExitStack() as stack:
        for name in ("train", "evaluate", "predict"):
            stack.enter_context(mock.patch.object(transformers.Trainer, name, stop))
        yield


@contextlib.contextmanager
def quiet(error: io.StringIO) -> Iterator[None]:
    """Keep what is printed; libraries' warnings are none of the command's business."""
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def contents(folder: Path | None) -> set[str]:
    """Return all files and folders below a folder, with the sizes of the files."""
    if folder is None or not folder.exists():
        return set()
    return {
        f"{path.relative_to(folder)} {path.stat().st_size if path.is_file() else ''}"
        for path in folder.rglob("*")
        if "cache" not in path.relative_to(folder).parts
    }


__all__ = ["NonFiniteFlatnessError", "Outcome", "TrainingBegan", "of_call", "of_command"]
