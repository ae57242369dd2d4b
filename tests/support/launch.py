"""Start scripts in two processes with `accelerate launch`, as users do, or in one."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
AS_GPUS = ROOT / "tests" / "support" / "cpus_as_gpus"
LATE_THREADS = ROOT / "tests" / "support" / "late_threads"
CONFIGS = ROOT / "recipes" / "accelerate_configs"


def free_port() -> int:
    """Below the range from which the system gives ports to outgoing connections, so that nobody takes it meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def command(script: Path, *arguments: str, config: str | None = "ddp_cpu.yaml") -> list[str]:
    """The command line of a launch; without a configuration that of a single process."""
    if config is None:
        return [sys.executable, str(script), *arguments]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    return [*launch, "--main_process_port", str(free_port()), str(script), *arguments]


def environment() -> dict[str, str]:
    """One thread a process, nothing from the Hub, gloo on the loopback interface."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **settings, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def launch(
    script: Path,
    *arguments: str,
    config: str | None = "ddp_cpu.yaml",
    fails: bool = False,
    as_gpus: bool = False,
    processes: int | None = None,
    more_path: Path | None = None,
) -> str:
    """Run a script to its end and return all that it printed; whether it fails has to be as expected.

    Args:
        script: what is started.
        arguments: its own.
        config: of accelerate; None for a single process.
        fails: whether it has to fail.
        as_gpus: make accelerate take the processes for GPUs, see cpus_as_gpus/sitecustomize.py.
        processes: their number, instead of that in the configuration.
        more_path: folder whose sitecustomize.py Python imports first.
    """
    asked = command(script, *arguments, config=config)
    if processes is not None:
        place = asked.index("--main_process_port")
        asked[place:place] = ["--num_processes", str(processes)]
    env = environment()
    if as_gpus:
        env["CPUS_AS_GPUS"], more_path = "1", AS_GPUS
    if more_path is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(more_path), env["PYTHONPATH"]])
    done = subprocess.run(asked, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    said = done.stdout[-20_000:]  # what a process that failed first said comes early
    assert (done.returncode != 0) == fails, f"exit code {done.returncode} of {' '.join(asked)}\n{said}"
    return done.stdout
