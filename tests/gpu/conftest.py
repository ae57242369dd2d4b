"""Tests of this folder need a GPU. GPU_TESTS_DEVICE=cpu runs them on a CPU, which checks the tests themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
REASON = "needs a GPU (bash recipes/gpu/run.sh)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """For what exists on a GPU alone."""
    if device.type != "cuda":
        pytest.skip(REASON)
    return device


@pytest.fixture(autouse=True)
def restore_settings() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    torch.use_deterministic_algorithms(False)
