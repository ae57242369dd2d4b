"""A training that is killed while it saves, at 20 moments, resumes to the weights of one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.launch import environment

SCRIPT = Path(__file__).parents[1] / "support" / "killed_trainings.py"
KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_kills_while_saving_never_change_a_resumed_training(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(KILLS)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["killed"] == counts["same"] == KILLS
    assert counts["incomplete"] > 0, "no kill came while a checkpoint was written"
