"""A loss without a critical point: the result says so, and no error of scipy reaches the user."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hf_fam.landscape import find_critical_point


@pytest.mark.parametrize("seed", range(4))
def test_separable_data_under_cross_entropy(seed: int) -> None:
    """The loss falls to 0, and the Hessian with it: scipy's factors of it become infinite."""
    torch.manual_seed(seed)
    data = (torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0]))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    before = float(nn.functional.cross_entropy(model(data[0]), data[1]))
    critical = find_critical_point(model, nn.CrossEntropyLoss(), data)
    assert not critical.converged and critical.reason
    assert math.isfinite(critical.loss) and critical.loss <= before
    assert all(bool(p.isfinite().all()) for p in critical.model.parameters())
