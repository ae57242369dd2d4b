"""Gradients of a large head's term over two processes and over one, compared; torchrun starts it."""

from __future__ import annotations

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


def gradients(model: nn.Module, called: nn.Module, ids: Tensor, estimator: str) -> list[Tensor]:
    flatness = RelativeFlatness(called, "3", estimator)
    flatness.seed(1)
    with flatness.capture(5.0):
        logits = called(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    flatness(loss)
    loss.backward()
    flatness.detach()
    return [p.grad for p in model.parameters()]


def main() -> None:
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    ids = torch.randint(0, CLASSES, (8, 3), generator=torch.Generator().manual_seed(1))
    own = ids[4 * dist.get_rank() :][:4]
    for tied in (False, True):
        for estimator in ("closed_form", "row_probes"):
            model, whole = network(tied), network(tied)
            found = gradients(model, nn.parallel.DistributedDataParallel(model), own, estimator)
            expected = gradients(whole, whole, ids, estimator)
            for f, e in zip(found, expected, strict=True):
                torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12 * float(e.abs().max()))
    dist.barrier()
    if dist.get_rank() == 0:
        print("two processes agree with one")


if __name__ == "__main__":
    main()
