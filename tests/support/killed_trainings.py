"""Trainings that are killed while they save, and what they resume to; started by test_killed_while_saving.py.

Every training has a process of its own, forked before torch has started a thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from hf_fam import FAMTrainer
from hf_fam.processes.checkpoints import problem_of_checkpoint
from support.tiny import fam_trainer, tiny_bert

SETTINGS = {"fam_layer": "representation", "fam_estimator": "gauss_newton", "fam_center": True, "fam_lambda": 0.5}


def trainer_of(path: Path, seed: int = 0, on_save: Callable[[], None] = lambda: None) -> FAMTrainer:
    """A Trainer that calls a function when it begins to save its second checkpoint of three."""
    trainer = fam_trainer(path, tiny_bert(seed=seed), max_steps=6, save_strategy="steps", save_steps=2, **SETTINGS)
    save = trainer._save_checkpoint

    def saving(*args: object, **kwargs: object) -> None:
        if trainer.state.global_step == 4:
            on_save()
        save(*args, **kwargs)

    trainer._save_checkpoint = saving
    return trainer


def in_a_process(run: Callable[[], None]) -> int:
    """Return the status of a forked process that runs a function."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(path: Path) -> None:
    """Train to the end, and write when the second checkpoint was begun and was whole."""
    times = [0.0]

    def begin() -> None:
        times[0] = time.monotonic()

    trainer = trainer_of(path, on_save=begin)
    save = trainer._save_checkpoint

    def timed(*args: object, **kwargs: object) -> None:
        save(*args, **kwargs)
        if trainer.state.global_step == 4:
            (path / "seconds").write_text(str(time.monotonic() - times[0]))

    trainer._save_checkpoint = timed
    trainer.train()
    torch.save(trainer.model.state_dict(), path / "weights.pt")


def train_and_die(path: Path, delay: float) -> None:
    """Train, and be killed by an alarm so long after the second checkpoint was begun."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills at once, without any clean-up
    trainer_of(path, on_save=lambda: signal.setitimer(signal.ITIMER_REAL, delay)).train()
    time.sleep(delay + 10)


def resume(path: Path) -> None:
    """Resume from the newest whole checkpoint, with another model."""
    trainer = trainer_of(path, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checkpoint that is passed over
        trainer.train(resume_from_checkpoint=True)
    torch.save(trainer.model.state_dict(), path / "weights.pt")


def main(folder: Path, kills: int) -> None:
    """Print how many kills there were, left a checkpoint that is not whole, and resumed to the same weights."""
    whole = folder / "whole"
    assert in_a_process(lambda: train(whole)) == 0
    seconds, expected = float((whole / "seconds").read_text()), torch.load(whole / "weights.pt")
    counts = {"killed": 0, "incomplete": 0, "same": 0}
    for kill in range(kills):
        path = folder / f"killed-{kill}"
        status = in_a_process(lambda path=path, kill=kill: train_and_die(path, seconds * (kill + 0.5) / kills))
        counts["killed"] += status == -signal.SIGALRM
        newest = path / "checkpoint-4"
        counts["incomplete"] += newest.is_dir() and problem_of_checkpoint(newest) is not None
        assert in_a_process(lambda path=path: resume(path)) == 0
        found = torch.load(path / "weights.pt")
        counts["same"] += all(torch.equal(found[name], value) for name, value in expected.items())
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
