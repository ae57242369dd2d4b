"""A model with a layer that some steps do not call."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Skipping(nn.Module):
    """Two blocks and a head; ``calls_expert`` says which training steps call the expert."""

    def __init__(self, *calls_expert: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.experts, self.head = nn.Linear(4, 6), nn.ModuleList([nn.Linear(6, 6)]), nn.Linear(6, 3)
        self.calls_expert, self.inputs = calls_expert, []
        self.double()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = x.double()
        h = torch.tanh(self.first(x))
        if self.calls_expert[len(self.inputs) % len(self.calls_expert)]:
            h = h + torch.tanh(self.experts[0](h))
        self.inputs.append((x, labels))
        z = self.head(h)
        return {"loss": nn.functional.cross_entropy(z, labels), "logits": z}


def examples(count: int) -> list[dict[str, object]]:
    """Return random inputs with labels."""
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, generator=generator), "labels": k % 3} for k in range(count)]
