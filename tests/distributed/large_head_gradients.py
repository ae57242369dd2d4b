"""Gradients of a large head's term over two processes and over one, compared; torchrun starts it."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness

CLASSES = 5_000


def network(tied: bool) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(CLASSES, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES, bias=False))
    if tied:
        model[0].weight = model[3].weight
    return model.double()


class WithLoss(nn.Module):
    """Returns its loss too, as transformers' models do; DistributedDataParallel then looks for unused parameters."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body, self.unused = body, nn.Linear(2, 2).double()

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        logits = self.body(ids)
        mask = torch.ones_like(logits[..., 0])  # an output without a gradient
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), logits, mask


def gradients(model: nn.Module, called: nn.Module, ids: Tensor, estimator: str, of_model: bool) -> list[Tensor]:
    flatness = RelativeFlatness(called, "body.3", estimator)
    flatness.seed(1)
    with flatness.capture(5.0):
        loss, logits, mask = called(ids)
    if not of_model:
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten()) + 0 * mask.sum()
    kappa = flatness(loss)
    assert kappa == 0, "the term acts in the backward pass"
    loss.backward()
    assert kappa > 0
    flatness.detach()
    return [p.grad for p in model.body.parameters()]


def main() -> None:
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    ids = torch.randint(0, CLASSES, (8, 3), generator=torch.Generator().manual_seed(1))
    own = ids[4 * dist.get_rank() :][:4]
    for tied, estimator, of_model in itertools.product((False, True), ("closed_form", "row_probes"), (True, False)):
        model, whole = WithLoss(network(tied)), WithLoss(network(tied))
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        found = gradients(model, wrapped, own, estimator, of_model)
        expected = gradients(whole, whole, ids, estimator, of_model)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12 * float(e.abs().max()))
    dist.barrier()
    if dist.get_rank() == 0:
        print("two processes agree with one")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
