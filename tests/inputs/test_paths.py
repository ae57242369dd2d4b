"""Folders are tried out before the work, also by several launched processes at the same time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from hf_fam.inputs.paths import require_writable_folder


def attempt(folder: str, together: Any, refusals: Any) -> None:
    count = 0
    for _ in range(100):
        together.wait()
        try:
            require_writable_folder("output_dir", folder)
        except Exception:
            count += 1
    refusals.put(count)


def test_two_processes_may_try_the_same_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together, refusals = context.Barrier(2, timeout=60), context.Queue()
    processes = [
        context.Process(target=attempt, args=(str(tmp_path / "a" / "b" / "c"), together, refusals)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    assert [refusals.get(timeout=90) for _ in processes] == [0, 0]
    for process in processes:
        process.join()


def test_nothing_is_left_and_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    require_writable_folder("output_dir", str(tmp_path / "a" / "b"))
    assert not [*tmp_path.iterdir()]
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "b"):
        with pytest.raises(ValueError, match=r"output_dir='.*': '.*file' is a file: give another folder\."):
            require_writable_folder("output_dir", str(folder))
    with pytest.raises(ValueError, match=r"output_dir='.*': no file can be written there"):
        require_writable_folder("output_dir", str(tmp_path / ("x" * 300)))
