"""The end of a program that may be one of several processes."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process with an exit status, as the last call of a program.

    One of several processes ends without Python's own end, in which threads of torch's process groups still run. A thread
    that needs Python then aborts the process, though its training is complete. ``destroy_process_group`` does not end
    the threads of gloo under DistributedDataParallel (torch 2.13). Non-daemon threads and exit handlers run before, as
    in a child of ``multiprocessing``.

    Args:
        status: the exit status.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
