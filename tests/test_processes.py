"""Decisions of all processes, as one process sees them; with two: tests/distributed/test_faults.py."""

from __future__ import annotations

import math

import pytest

from hf_fam.processes import StoppedWithTheOthersError
from hf_fam.training_log import LARGEST_RATIO, NonFiniteFlatnessError, ratio_of_norms


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
