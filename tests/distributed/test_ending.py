"""A complete training ends with status 0, whatever torch's threads still do."""

from __future__ import annotations

import pytest
import torch

from support.launch import LATE_THREADS, ROOT, launch


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("how", ["leave", "exit"])
def test_a_thread_of_gloo_at_the_end(how: str) -> None:
    """It aborts a process that ends as Python does."""
    printed = launch(ROOT / "tests" / "support" / "ending.py", how, more_path=LATE_THREADS, fails=how == "exit")
    assert printed.count("a thread frees its tensor") == 1
    assert ("SIGABRT" in printed) == (how == "exit")
