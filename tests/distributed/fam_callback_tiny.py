"""Train with FAMCallback and write what each process logged; started by test_two_processes_fam_callback.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from support.arrangements import CALLBACK_CASES, trained_with_callback
from support.leaving import leave_together


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found = {name: trained_with_callback(folder, name, batch=2) for name in CALLBACK_CASES}
    torch.save(found, folder / f"{accelerator.process_index}.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
