"""Two backward passes through one graph: twice the gradient, and the same kappa."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness


class Twice(nn.Module):
    """Calls its hidden layer twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(5, 5), nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).tanh() + self.hidden(2 * x).tanh())


@pytest.mark.parametrize(
    ("layer", "estimator"), [("head", "closed_form"), ("head", "row_probes"), ("hidden", "perturbation")]
)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_kappa_is_the_same(layer: str, estimator: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under the scale of a gradient scaler, which may change from one pass to the next."""
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    model = Twice().double()
    flatness = RelativeFlatness(model, layer, estimator)
    with flatness.capture(0.3):
        z = model(torch.randn(6, 5, dtype=torch.float64))
    loss = F.cross_entropy(z, torch.arange(6))
    kappa = flatness(loss)
    loss.backward(retain_graph=True)
    first = float(kappa)
    gradients = [p.grad.clone() for p in model.parameters()]
    assert first != 0
    (scale * loss).backward()
    assert float(kappa) == pytest.approx(first, rel=1e-12)
    torch.testing.assert_close([p.grad for p in model.parameters()], [(1 + scale) * g for g in gradients])
