"""What goes wrong in one process concerns all: they stop together; a killed training resumes to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from support.faults import NOT_A_NUMBER, net_trainer, without_first_labels
from support.launch import ROOT, command, environment, launch
from support.tiny import largest_difference, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

SCRIPT = ROOT / "tests" / "support" / "faults.py"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What each of two processes saw, and all that was printed until the last training stopped both."""
    folder = tmp_path_factory.mktemp("together")
    printed = launch(SCRIPT, "together", str(folder), fails=True)
    found = [torch.load(folder / f"{k}.pt") for k in (0, 1)]
    assert [f["processes"] for f in found] == [2, 2]
    return found, printed


@pytest.mark.parametrize("name", NOT_A_NUMBER)
def test_not_a_number_in_one_process_stops_all(together: Any, name: str) -> None:
    """Before the step is taken, and before anything is saved that could not be resumed from."""
    first, second = (found[name] for found in together[0])
    step = 0 if "accumulation" in name else 1
    what = "a label at step 1 is NaN" if name == "label" else f"relative flatness is nan at step {step}"
    assert first["said"].startswith(f"NonFiniteFlatnessError: in process 1 of 2, {what}")
    assert second["said"].startswith("StoppedWithTheOthersError")
    assert "resume_from_checkpoint" in first["said"] or not first["saved"]
    for found in (first, second):
        assert found["finite"] and found["step"] == step
    assert first["saved"] == [f"checkpoint-{k + 1}" for k in range(step)]


def test_one_process_prints_the_message(together: Any) -> None:
    _, printed = together
    assert printed.count("relative flatness is nan at step 1") == 1
    assert printed.count("Error: in process 1 of 2") == 1
    assert "StoppedWithTheOthersError" not in printed
    assert "[rank1]: Traceback" not in printed


def test_scale_of_the_loss_is_one_decision(tmp_path: Path, together: Any) -> None:
    """Process 0 cannot tell from its first batch, without labels, whether the model honours num_items_in_batch."""
    (first, scaled), (second, other_scaled) = (found["scaling"] for found in together[0])
    assert largest_difference(first, second) == 0
    assert scaled is False and other_scaled is False  # the correction stands until the next training
    reference = net_trainer(tmp_path, without_first_labels(), "classes", 8, fam_loss_scaling="corrected")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.train()
    assert largest_difference(first, weights(reference.model)) < 1e-6


def test_log_is_one_exchange(together: Any) -> None:
    """The losses of process 1 are constant, so it measures nothing but zeros; both log the mean of both processes."""
    (first, logs), (second, other_logs) = (found["constant"] for found in together[0])
    assert largest_difference(first, second) == 0
    entries, others = ([{k: v for k, v in e.items() if "fam_" in k} for e in log] for log in (logs, other_logs))
    assert entries == others
    assert [entry["fam_lambda"] for entry in entries[:4]] == [0.05, 0.1, 0.1, 0.1]
    assert entries[0]["fam_grad_ratio"] > 0 and all(entry["fam_kappa"] > 0 for entry in entries[:4])


def kill_while_waiting(folder: Path) -> None:
    """Start a training, wait until both processes wait in the fourth step, and kill them and their launcher."""
    process = subprocess.Popen(
        command(SCRIPT, "waits", str(folder)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    files, deadline = [folder / f"{k}.pid" for k in (0, 1)], time.monotonic() + 240
    try:
        while not all(file.exists() and file.read_text() for file in files):
            assert process.poll() is None and time.monotonic() < deadline, "the processes did not get so far"
            time.sleep(0.1)
    finally:
        process.kill()  # first, so that it ends nobody in an orderly way
        for file in files:
            if file.exists():
                os.kill(int(file.read_text()), signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit: one process killed, and the whole job killed, in the fourth of six steps."""
    for kind in ("killed", "waits"):
        (tmp_path / kind).mkdir()
    launch(SCRIPT, "killed", str(tmp_path / "killed"), fails=True)
    kill_while_waiting(tmp_path / "waits")
    for kind in ("killed", "waits"):
        assert [path.name for path in (tmp_path / kind).glob("checkpoint-*")] == ["checkpoint-2"]
    launch(SCRIPT, "resumed", str(tmp_path))
    found = torch.load(tmp_path / "0.pt")
    assert found["processes"] == 2
    for kind in ("killed", "waits"):
        assert largest_difference(found[kind], found["uninterrupted"]) == 0, kind
        assert sorted(path.name for path in (tmp_path / kind).glob("checkpoint-*"))[-1] == "checkpoint-6"
