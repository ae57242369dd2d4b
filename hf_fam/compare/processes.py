"""Comparisons in several processes of one launcher, which make every run together."""

from __future__ import annotations

import os
from collections.abc import Iterator

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .journal import Record
from .runs import Run


class Processes:
    """The processes that `accelerate launch` started; usually this one alone.

    Args:
        jobs: number of runs at the same time.

    Raises:
        ValueError: there are several processes and several jobs.
    """

    def __init__(self, jobs: int) -> None:
        self._count = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
        if self._count > 1 and jobs > 1:
            raise ValueError(
                f"jobs={jobs} in {self._count} launched processes, which make every run together: set jobs=1."
            )

    @property
    def is_alone(self) -> bool:
        """Return True in a single process."""
        return self._count == 1

    @property
    def is_main(self) -> bool:
        """Return True in the process that writes and prints."""
        return self._count == 1 or PartialState().is_main_process

    def agree(self, answer: bool) -> bool:
        """Return the main process's answer in every process."""
        return answer if self._count == 1 else bool(_of_main(answer))

    def broadcast(self, records: Iterator[tuple[Run, Record]]) -> Iterator[tuple[Run, Record]]:
        """Yield the main process's records in every process."""
        for run, record in records:
            yield run, record if self._count == 1 else _of_main(record)  # type: ignore[misc]


def _of_main(value: object) -> object:
    values = [value]
    broadcast_object_list(values)
    return values[0]
