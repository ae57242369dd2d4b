"""The command that repeats a run, for its model card."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# `hf-fam train`, and the same in several processes, `accelerate launch -m hf_fam train`.
INSTALLED = ("hf-fam", "__main__.py")

# What must not be published, and what belongs to one attempt only. The parser takes dashes for underscores too,
# and no abbreviations.
SECRET = ("--token", "--hub_token", "--push_to_hub", "--resume_from_checkpoint")


def repeat_command(args: Any, argv: Sequence[str] | None = None) -> str:
    """What to type on a machine of the same kind: from the root of the repository or, after ``hf-fam train``, anywhere.

    Folders outside of it are shortened to their last part: a card tells nobody how a machine is laid out.

    Args:
        args: the Trainer's arguments: the processes that it runs in are named.
        argv: script and flags; the process's own by default.
    """
    script, *given = sys.argv if argv is None else argv
    flags = [shortened(word) for word in without(given, SECRET)]
    launched = ["accelerate", "launch", *how_launched(args)]
    if Path(script).name not in INSTALLED:
        return shlex.join([*launched, shortened(script), *flags])
    alone = args.world_size == 1 and precision_of_the_launcher() == "no"
    return shlex.join([*(["hf-fam"] if alone else [*launched, "-m", "hf_fam"]), *flags])


def how_launched(args: Any) -> list[str]:
    """Flags of the launcher: number and kind of processes, and the precision, which only it may know."""
    many = args.world_size > 1
    if many and args.use_cpu:  # for which the launcher has no flag
        kind = ["--config_file", "recipes/accelerate_configs/ddp_cpu.yaml"]
    else:
        kind = ["--multi_gpu"] if many else []
    return [*kind, "--num_processes", str(args.world_size), "--mixed_precision", precision_of_the_launcher()]


def precision_of_the_launcher() -> str:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def without(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """The flags but some, whose values go with them; `--hub-token` is `--hub_token`."""
    kept: list[str] = []
    leaving = False
    for word in given:
        flag = "--" + word.split("=")[0][2:].replace("-", "_")
        leaving = (word.startswith("--") and flag in names) or (leaving and not word.startswith("-"))
        if word.startswith("--") and "=" in word and leaving:
            leaving = False
        elif not leaving:
            kept.append(word)
    return kept


def shortened(word: str) -> str:
    """An absolute path within the repository is made relative, any other one loses its folders."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = Path(value)
    if path.is_absolute():
        inside = path.is_relative_to(ROOT)
        value = path.relative_to(ROOT).as_posix() if inside else path.name
    return f"{flag}{equals}{value}"
