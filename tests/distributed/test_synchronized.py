"""Under DistributedDataParallel all processes get the same gradients, and they are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.launch import ROOT, launch
from support.synchronized import TERMS, WAYS, steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("synchronized")
    launch(ROOT / "tests" / "support" / "synchronized.py", str(folder))
    found = [torch.load(folder / f"{k}.pt") for k in (0, 1)]
    assert [f["processes"] for f in found] == [2, 2]
    return found


def assert_equal(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]], tolerance: float) -> None:
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and one
        for name in one:
            torch.testing.assert_close(
                one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_one_process(tmp_path: Path, both: list[dict[Any, Any]], way: str, term: str) -> None:
    first, second = (found[way, term] for found in both)
    assert_equal(second, first, 0.0)
    assert_equal(first, steps(tmp_path, way, TERMS[term], 8), 1e-10)


@pytest.mark.parametrize("estimator", ["closed_form", "hessian", "gauss_newton", "perturbation"])
def test_nothing_is_reduced_before_the_backward_pass(both: list[dict[Any, Any]], estimator: str) -> None:
    """The derivatives that kappa consists of must not reach the hooks with which gradients are averaged."""
    for found in both:
        count = found["reductions", estimator]
        assert count["kappa"] == 0
        assert count["backward"] == count["plain"] >= 3
