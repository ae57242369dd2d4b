"""FlatLogisticRegression on a GPU: the fit of the CPU, and results on the device of the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hf_fam import FlatLogisticRegression


def features_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(400) % 5
    features = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))[labels]
    return features + 2 * torch.randn(400, 64, generator=torch.Generator().manual_seed(1)), labels


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", [0.5, "auto"])
def test_the_fit_is_that_of_the_cpu(delta: float | str, precision: torch.dtype, device: torch.device) -> None:
    features, labels = features_and_labels()
    expected = FlatLogisticRegression(delta=delta, tol=1e-5).fit(features.double().numpy(), labels.numpy())
    moved = features.to(device, precision)
    found = FlatLogisticRegression(delta=delta, tol=1e-5).fit(moved, labels.to(device))
    assert found.delta_ == expected.delta_
    assert found.coef_.device == moved.device and found.intercept_.device == moved.device
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        result = getattr(found, name)(moved)
        assert result.device == moved.device
        np.testing.assert_allclose(result.cpu().numpy(), getattr(expected, name)(features.double().numpy()), atol=1e-3)
    head = nn.Linear(64, 5).to(device)
    found.write_to(head)
    torch.testing.assert_close(head(moved.float()).softmax(1), found.predict_proba(moved).float(), rtol=0, atol=1e-5)
