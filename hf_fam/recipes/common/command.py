"""The command that repeats a run, for its model card."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parsing import flag_name

# Scripts of `hf-fam train` and of `accelerate launch -m hf_fam train`.
COMMAND_SCRIPTS = ("hf-fam", "__main__.py")
# The folder of a checkout that contains the launchers, recipes/TASK/run.py.
LAUNCHER_FOLDER = "recipes"

# Flags that must not be published, or that belong to one attempt only. The parser takes no abbreviations.
UNPUBLISHED = ("token", "hub_token", "push_to_hub", "resume_from_checkpoint")


def repeat_command(args: Any, argv: Sequence[str] | None = None) -> str:
    """Return the command that repeats a run on a similar machine.

    It is to be started from the root of the repository or, after ``hf-fam train``, from anywhere. Absolute paths lose
    their folders, so that a card does not publish them.

    Args:
        args: the Trainer's arguments; the command starts as many processes.
        argv: script and flags; the process's own by default.
    """
    script, *flags = sys.argv if argv is None else argv
    root = repository_root(Path(script))
    flags = [shorten_path(word, root) for word in drop_flags(flags, UNPUBLISHED)]
    launch = ["accelerate", "launch", *launcher_flags(args)]
    if Path(script).name not in COMMAND_SCRIPTS:
        return shlex.join([*launch, shorten_path(script, root), *flags])
    is_single = args.world_size == 1 and launcher_precision() == "no"
    return shlex.join([*(["hf-fam"] if is_single else [*launch, "-m", "hf_fam"]), *flags])


def repository_root(script: Path) -> Path | None:
    """Return the folder that contains recipes/TASK/run.py, or None if a script is not called so."""
    folder = script.parent.parent
    return folder.parent if script.is_absolute() and folder.name == LAUNCHER_FOLDER else None


def launcher_flags(args: Any) -> list[str]:
    """Return the launcher's flags: number and kind of processes, and mixed precision."""
    is_parallel = args.world_size > 1
    if is_parallel and args.use_cpu:  # the launcher has no flag for it
        kind = ["--config_file", "recipes/accelerate_configs/ddp_cpu.yaml"]
    else:
        kind = ["--multi_gpu"] if is_parallel else []
    return [*kind, "--num_processes", str(args.world_size), "--mixed_precision", launcher_precision()]


def launcher_precision() -> str:
    """Return the mixed precision that the launcher was started with."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def drop_flags(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a command line without some flags and their values.

    Args:
        words: the command line.
        names: fields that the dropped flags set.
    """
    kept: list[str] = []
    is_dropping = False
    for word in words:
        name = flag_name(word)
        is_dropping = name in names or (is_dropping and not word.startswith("-"))
        if name is not None and "=" in word and is_dropping:
            is_dropping = False
        elif not is_dropping:
            kept.append(word)
    return kept


def shorten_path(word: str, root: Path | None) -> str:
    """Return a word of a command line without the folders of an absolute path.

    Args:
        word: a path, a flag with a path, or anything else.
        root: paths within this folder are made relative to it.
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = Path(value)
    if path.is_absolute():
        is_inside = root is not None and path.is_relative_to(root)
        value = path.relative_to(root).as_posix() if root is not None and is_inside else path.name
    return f"{flag}{equals}{value}"
