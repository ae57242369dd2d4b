"""FAMCallback trains, and logs in every one of two processes, as in one on the same data (gloo, CPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.arrangements import CALLBACK_CASES, CALLBACK_LOGS, trained_with_callback
from support.launch import launch

SCRIPT = Path(__file__).with_name("fam_callback_tiny.py")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("together")
    launch(SCRIPT, str(folder))
    return [torch.load(folder / f"{k}.pt") for k in (0, 1)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("name", CALLBACK_CASES)
def test_two_processes_log_what_one_does(tmp_path: Path, together: list[dict[str, Any]], name: str) -> None:
    one = trained_with_callback(tmp_path, name, batch=4)
    assert one["processes"] == 1
    assert one["fam_lambda"] == [7.5, 17.5]
    for two in (found[name] for found in together):
        assert two["processes"] == 2
        for key in CALLBACK_LOGS:
            precision = 1e-6 if key == "loss" else 2e-7  # gathered in float32; logged with seven digits
            assert two[key] == pytest.approx(one[key], rel=precision), key
        torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-9, atol=1e-11)
