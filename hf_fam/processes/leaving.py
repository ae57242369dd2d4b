"""The end of a program that may be one of several processes."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def run_and_leave(program: Callable[[], int]) -> NoReturn:
    """Run a program, and end this process with the exit status that it returns, see `leave`.

    One of several processes that raises an error ends at once, too. In Python's own end it would wait for the others.

    Args:
        program: returns the exit status.
    """
    if not _is_one_of_several():
        sys.exit(program())
    try:
        status = program()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    leave(status)


def leave(status: int) -> NoReturn:
    """End this process with an exit status, as the last call of a program.

    One of several processes ends without Python's own end, in which threads of torch's process groups still run. A
    thread that needs Python then aborts the process, though its training is complete. ``destroy_process_group`` does
    not end the threads of gloo under DistributedDataParallel and FSDP2 (torch 2.13). Non-daemon threads and exit
    handlers run before, as in a child of ``multiprocessing``.

    Args:
        status: the exit status.
    """
    if not _is_one_of_several():
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def is_lost_connection(error: BaseException) -> bool:
    """Return True for an error of gloo that says that another process has ended.

    Examples:
        >>> is_lost_connection(RuntimeError("[gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
        True
        >>> is_lost_connection(RuntimeError("size mismatch"))
        False
    """
    words = ("closed by peer", "reset by peer", "Broken pipe")
    return "gloo/transport" in str(error) and any(word in str(error) for word in words)


def _is_one_of_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"
