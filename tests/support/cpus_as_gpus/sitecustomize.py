"""Make accelerate take CPU processes for GPU processes, so that it shards by FSDP2 over gloo.

On CPUs accelerate ignores FSDP. Python imports this file at its start, if the folder is on PYTHONPATH. All else is
accelerate's and torch's own code.
"""

import os


def _take_for_gpus() -> None:
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    prepare_backend = PartialState._prepare_backend

    def prepare(self, *args, **kwargs):
        if not os.environ.get("CPUS_AS_GPUS"):
            return prepare_backend(self, *args, **kwargs)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        self.device = torch.device("cpu")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = prepare


if "LOCAL_RANK" in os.environ:
    _take_for_gpus()
