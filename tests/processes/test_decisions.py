"""Decisions of all processes, as one process sees them; with two: tests/distributed/test_faults.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_fam.processes.decisions import NonFiniteFlatnessError, StoppedWithTheOthersError
from hf_fam.train.log import LARGEST_RATIO, FlatnessLog, ratio_of_norms


def test_silent_error_is_caught_like_the_loud_one_and_ends_a_process_with_code_one() -> None:
    with pytest.raises(NonFiniteFlatnessError, match="in process 0") as caught:
        raise StoppedWithTheOthersError("in process 0 of 2, ...")
    assert isinstance(caught.value, SystemExit) and caught.value.code == 1


@pytest.mark.parametrize(
    ("squares", "ratio"),
    [((4.0, 1.0), 2.0), ((0.0, 1.0), 0.0), ((0.0, 0.0), 0.0), ((1.0, 0.0), LARGEST_RATIO), ((math.inf, 1.0), 1e30)],
)
def test_ratio_of_norms(squares: tuple[float, float], ratio: float) -> None:
    assert ratio_of_norms(*squares) == ratio


def test_process_that_measured_no_ratio_exchanges_a_tensor_of_the_same_shape() -> None:
    """Else two processes would wait for each other, or mix up their numbers."""
    shapes = []

    def exchange(tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return tensor

    for squares in (None, torch.tensor([4.0, 1.0])):
        log = FlatnessLog()
        log.add(step=0, loss=torch.tensor(1.0), kappa=torch.tensor(2.0), share=1.0, strength=0.5, squares=squares)
        logs = log.drain(in_features=2, mean_over_processes=exchange)
        assert logs.get("fam_grad_ratio") == (None if squares is None else 1.0)
    assert shapes[0] == shapes[1]
