"""200 models, one after the other, leave nothing behind."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach


def live_objects() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) in (nn.Sequential, nn.Linear, torch.Tensor, nn.Parameter))


def use(estimator: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(6, 3), torch.arange(6) % 3
    if estimator == "attach":
        attach(model, 0.1)
        F.cross_entropy(model(x), y).backward()
        return
    flatness = RelativeFlatness(model, "2" if estimator == "closed_form" else "0", estimator)
    with flatness.capture(0.1):
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
    (loss + flatness(loss)).backward()


@pytest.mark.parametrize("estimator", ["closed_form", "hessian", "gauss_newton", "perturbation", "attach"])
def test_nothing_is_left_of_200_models(estimator: str) -> None:
    for _ in range(3):
        use(estimator)
    before = live_objects()
    for _ in range(200):
        use(estimator)
    assert live_objects() <= before
