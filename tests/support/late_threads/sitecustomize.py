"""Make a thread of gloo need Python after the program's end, as a slow machine may.

Python imports this file at its start, if the folder is on PYTHONPATH. The last exchange between the processes then ends
in a thread of gloo, which frees its tensor, and that takes a while.
"""

import os
import time


class Late:
    """Takes a while to be freed."""

    def __del__(self) -> None:
        os.write(2, b"a thread frees its tensor\n")
        time.sleep(20)


def _leave_a_thread_behind() -> None:
    import torch
    import torch.distributed as dist

    destroy = dist.destroy_process_group

    def destroy_late(group: object = None) -> None:
        is_first = dist.get_rank() == 0
        time.sleep(0.5 * is_first)
        tensor = torch.ones(3)
        tensor.late = None if is_first else Late()
        dist.all_reduce(tensor, async_op=True)
        del tensor
        time.sleep(1.0 * (not is_first))
        destroy(group)

    dist.destroy_process_group = destroy_late


if "LOCAL_RANK" in os.environ:
    _leave_a_thread_behind()
