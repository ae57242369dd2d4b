"""A training that is over at once, and how its processes end; launched by tests/distributed/test_ending.py."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from hf_fam.processes.leaving import leave


def main(how: str) -> None:
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    dist.barrier()
    dist.destroy_process_group()
    print("the training is complete", flush=True)
    (leave if how == "leave" else sys.exit)(0)


if __name__ == "__main__":
    main(sys.argv[1])
