"""Two processes take the steps of one: weights and logged kappa, accumulation included (gloo, CPU)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("train_tiny.py")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(folder: Path, processes: int, batch: int, accumulation: int) -> dict[str, Any]:
    command = [sys.executable]
    if processes > 1:  # `--cpu --num_processes 2` would silently run one process
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", str(free_port())]
    output = folder / f"{processes}-{batch}-{accumulation}.json"
    command += [str(SCRIPT), str(output), str(batch), str(accumulation)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(output.read_text())
    assert result["processes"] == processes
    return result


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = run(tmp_path, 1, 8, 1)
    start = torch.tensor(one["weights"], dtype=torch.float64)
    for processes, batch, accumulation in ((2, 4, 1), (2, 2, 2)):
        two = run(tmp_path, processes, batch, accumulation)
        torch.testing.assert_close(torch.tensor(two["weights"], dtype=torch.float64), start, rtol=1e-6, atol=1e-9)
        assert two["kappa"] == pytest.approx(one["kappa"], rel=1e-5)
    assert len(one["kappa"]) == 5
