"""Processes that a launcher was asked for and did not start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from accelerate.commands.config.config_args import default_config_file


def refuse_lost_processes(command: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Refuse to train in one process if ``accelerate launch`` was asked for several.

    On a machine without GPUs it starts one, and says nothing, unless its configuration has a kind of parallelism.

    Args:
        command: the command line of the parent process; that of this process by default.
        environment: variables; those of this process by default.

    Raises:
        ValueError: says how to start several processes.

    Examples:
        >>> refuse_lost_processes(["accelerate", "launch", "--num_processes", "2", "-m", "hf_fam"], {})
        Traceback (most recent call last):
            ...
        ValueError: accelerate launch was asked for 2 processes and started one, as it does on CPUs: use `torchrun
        --nproc_per_node 2` and --use_cpu, or --num_processes 1.
    """
    words = parent_command() if command is None else [*command]
    variables = os.environ if environment is None else environment
    if variables.get("WORLD_SIZE", "1") != "1" or not _launches(words):
        return
    count = number_of_processes(words)
    if count > 1:
        raise ValueError(
            f"accelerate launch was asked for {count} processes and started one, as it does on CPUs: use `torchrun "
            f"--nproc_per_node {count}` and --use_cpu, or --num_processes 1."
        )


def parent_command() -> list[str]:
    """Return the command line of the parent process; empty if it cannot be read."""
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def number_of_processes(words: Sequence[str]) -> int:
    """Return the number of processes that a command line of ``accelerate launch``, or its configuration, names.

    Examples:
        >>> number_of_processes(["accelerate", "launch", "--num_processes=4", "train.py"])
        4
    """
    options: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        options.setdefault(name.replace("-", "_"), value if equals else following)
    named: Any = options.get("__num_processes")
    if named is None:
        file = Path(options.get("__config_file") or default_config_file)
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            settings = None
        named = settings.get("num_processes") if isinstance(settings, dict) else None
    return int(named) if str(named).isdigit() else 1


def _launches(words: Sequence[str]) -> bool:
    """Return True for the command line of ``accelerate launch``, or ``accelerate-launch``, or its module."""
    for word, following in zip(words[:4], [*words[1:4], ""], strict=False):
        name = Path(word).name
        if name == "accelerate-launch" or name == "accelerate.commands.launch":
            return True
        if name in ("accelerate", "accelerate.commands.accelerate_cli", "accelerate_cli.py") and following == "launch":
            return True
    return False
