"""How a program ends that may be one of several processes; with torch in tests/distributed/test_ending.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.launch import ROOT

PROGRAM = """
import atexit, sys, threading, time
from hf_fam.processes.leaving import leave
atexit.register(print, "an exit handler")
threading.Thread(target=lambda: (time.sleep(0.3), print("a thread"))).start()
print("to stderr", file=sys.stderr)
leave(3)
"""


def ended(program: str, processes: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(processes)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("processes", [1, 2])
def test_threads_and_exit_handlers_run(processes: int) -> None:
    done = ended(PROGRAM, processes)
    assert (done.returncode, done.stdout.splitlines()) == (3, ["a thread", "an exit handler"])
    assert done.stderr == "to stderr\n"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("program", "status", "last_line"),
    [
        ("return 0", 0, ""),
        ("return 130", 130, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit('a message')", 1, "a message"),
        ("raise RuntimeError('a fault')", 1, "RuntimeError: a fault"),
    ],
)
def test_status_of_a_program(program: str, status: int, last_line: str, processes: int) -> None:
    start = "import sys\nfrom hf_fam.processes.leaving import run_and_leave\ndef main():\n"
    done = ended(f"{start}    {program}\nrun_and_leave(main)", processes)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.rpartition("\n")[0].rpartition("\n")[2] == last_line
