"""Files and folders that a command is to write, tried out before its work begins."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator

from .text import LONGEST_PATH, first_line, quote

# Launched processes try the same folder at the same time.
ATTEMPTS = 20


def require_writable_folder(argument: str, folder: str) -> None:
    """Refuse a folder in which no file can be written; nothing is left of the attempt.

    Args:
        argument: name of the argument, for the message.
        folder: the folder, which may not exist yet.

    Raises:
        ValueError: names the argument and the folder.
    """
    path = os.path.abspath(folder) if "\0" not in folder else folder
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    if os.path.isfile(path):
        raise ValueError(
            f"{argument}={quote(folder, LONGEST_PATH)}: {quote(path, LONGEST_PATH)} is a file: give another folder."
        )
    for attempt in range(ATTEMPTS):
        try:
            _write_and_remove(os.path.abspath(folder) if "\0" not in folder else folder)
            return
        except (OSError, ValueError) as error:  # ValueError: a zero byte
            is_race = isinstance(error, (FileExistsError, FileNotFoundError))  # with a process that tries the same
            if is_race and attempt + 1 < ATTEMPTS:
                time.sleep(0.05 * random.random())
                continue
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ValueError(
                f"{argument}={quote(folder, LONGEST_PATH)}: no file can be written there ({reason})."
            ) from error


def _write_and_remove(folder: str) -> None:
    made = []
    try:
        parent = os.path.abspath(folder)
        missing = []
        while not os.path.isdir(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        for path in reversed(missing):
            os.mkdir(path)
            made.append(path)
        probe = os.path.join(folder, f".hf_fam_{os.getpid()}")
        with open(probe, "xb"):
            pass
        os.remove(probe)
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # another process uses it
                os.rmdir(path)


@contextlib.contextmanager
def no_new_folder_if_refused(folder: str | None) -> Iterator[None]:
    """Remove empty folders that a block made before it failed.

    Args:
        folder: the folder; those above it are removed as well. None: there is none.

    Examples:
        >>> import tempfile
        >>> folder = os.path.join(tempfile.mkdtemp(), "out")
        >>> with contextlib.suppress(ValueError), no_new_folder_if_refused(folder):
        ...     os.mkdir(folder)
        ...     raise ValueError("an unknown layer")
        >>> os.path.exists(folder)
        False
    """
    missing: list[str] = []
    path = os.path.abspath(folder or os.curdir)
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):  # it is not empty, or another process was faster
            for path in missing:
                os.rmdir(path)
        raise


def require_writable_file(argument: str, file: str) -> None:
    """Refuse a file that cannot be written; nothing is left of the attempt, and an old file stays as it is.

    Args:
        argument: name of the argument, for the message.
        file: the file, which may not exist yet.

    Raises:
        ValueError: names the argument and the file.
    """
    name = f"{argument} {quote(file, LONGEST_PATH)} cannot be written"
    if os.path.isdir(file):
        raise ValueError(f"{name}: it is a folder. Give the name of a file.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(file)) if "\0" not in file else ""):
        raise ValueError(f"{name}: there is no folder {quote(os.path.dirname(file), LONGEST_PATH)}.")
    is_new = not os.path.exists(file)
    try:
        with open(file, "ab"):
            pass
        if is_new:
            os.remove(file)
    except OSError as error:
        raise ValueError(f"{name} ({error.strerror}): choose another place.") from error
