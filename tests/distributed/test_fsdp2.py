"""FSDP2 in one's own loop (gloo, two CPU processes): gradients are those of one process, or it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from support.launch import ROOT, launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("fsdp2") / "found.json"
    launch(ROOT / "tests" / "support" / "fully_sharded.py", str(output))
    result = json.loads(output.read_text())
    assert result["processes"] == 2
    assert result["size_of_term"] > 0.1, "not a test if the term is too small to be missed"
    return result


def test_backward_pass_and_perturbation_give_the_gradients_of_one_process(found: dict[str, Any]) -> None:
    """The head in the root group or in one of its own, attached before or after; hidden layers in wrapped blocks."""
    exact = {name: error for name, error in found["errors"].items() if "mixed" not in name}
    assert len(exact) == 4 * (2 * 2 + 2 + 4) + 1  # and DistributedDataParallel
    assert {name: error for name, error in exact.items() if not error < 1e-12} == {}


def test_attach_in_mixed_precision(found: dict[str, Any]) -> None:
    assert found["errors"]["attach, mixed precision"] < 1e-6


def test_what_differentiates_twice_is_refused(found: dict[str, Any]) -> None:
    """torch 2.13 would end with a segmentation fault, or miss gradients."""
    refusals = found["refusals"]
    assert len(refusals) == 4
    for name in ("gauss_newton", "hessian", "dense"):
        assert f'estimator="{name}" does not work in a model that FSDP shards' in refusals[name]
        assert '"closed_form" for the head' in refusals[name] and '"perturbation" for any' in refusals[name]
    assert "capture(strength=0.003)" in refusals["no strength"]
