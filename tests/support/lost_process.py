"""`hf-fam train`, of which the second process ends in its second step; launched by test_lost_process.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hf_fam import FAMTrainer
from hf_fam.cli.main import main
from hf_fam.processes.leaving import run_and_leave

training_step = FAMTrainer.training_step


def step_with_fault(trainer: FAMTrainer, *args: Any, **kwargs: Any) -> Any:
    if trainer.args.process_index == 1 and trainer.state.global_step == 1:
        (Path(str(trainer.args.output_dir)) / "time").write_text(str(time.time()))
        if KIND == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if KIND == "refusing":
            raise ValueError("this process has a fault")
        raise RuntimeError("this process has a fault")
    return training_step(trainer, *args, **kwargs)


if __name__ == "__main__":
    KIND = sys.argv[1]
    FAMTrainer.training_step = step_with_fault
    run_and_leave(lambda: main(["train", *sys.argv[2:]]))
