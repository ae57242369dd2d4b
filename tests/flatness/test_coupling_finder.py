"""What one batch cannot show is looked for again in larger ones, and now and then; what was found stays found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_fam.calculus.recheck_schedule import RecheckSchedule
from hf_fam.flatness import coupling
from hf_fam.flatness.batch import Batch
from hf_fam.flatness.coupling import Coupling, CouplingFinder
from hf_fam.layer.linear_map import RowMap


def contrastive(z: Tensor) -> Tensor:
    """Every item against all others of the batch: with one item there is nothing to couple."""
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def separate(z: Tensor) -> Tensor:
    return z.tanh().square().sum()


def batch(loss: Callable[[Tensor], Tensor], count: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    weight, phi = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (3, count))
    z = (phi @ weight.T).requires_grad_()
    return Batch(loss(z), [phi], [z], RowMap(3, 4, lambda: weight))


def test_a_larger_batch_is_looked_at_and_what_it_shows_stays_found() -> None:
    """Else kappa would be biased from the second batch on, or change with the size of the batch."""
    finder = CouplingFinder()
    assert finder(batch(separate, 1)) is Coupling.ROWS
    assert finder(batch(contrastive, 8)) is Coupling.BATCH
    single = batch(contrastive, 1)
    assert {finder(single) for _ in range(RecheckSchedule.EVERY)} == {Coupling.BATCH}  # one of them is a recheck


def mixed(share: float) -> Callable[[Tensor], Tensor]:
    """The same operations with another number."""
    return lambda z: separate(z) + share * contrastive(z)


def test_batches_of_the_same_size_are_looked_at_now_and_then() -> None:
    finder = CouplingFinder()
    first, later = batch(mixed(0.0), 4), batch(mixed(1.0), 4)
    for _ in range(65):  # batches 0 to 64
        assert finder(first) is Coupling.ROWS
    found = [finder(later) for _ in range(65, RecheckSchedule.EVERY + 1)]
    assert found == [Coupling.ROWS] * (RecheckSchedule.EVERY - 65) + [Coupling.BATCH]


def test_a_loss_of_other_operations_is_looked_at_at_once() -> None:
    finder = CouplingFinder()
    for _ in range(65):
        assert finder(batch(separate, 4)) is Coupling.ROWS
    assert finder(batch(contrastive, 4)) is Coupling.BATCH


def test_graphs_that_depend_on_the_batch_are_not_looked_at_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    find = coupling.find_coupling
    monkeypatch.setattr(coupling, "find_coupling", lambda *args, **kwargs: (looks.append(1), find(*args, **kwargs))[1])
    finder = CouplingFinder()
    for number in range(60):
        finder(batch(lambda z, n=number: sum((z * 1).tanh().square().sum() for _ in range(n + 1)), 4))
    assert len(looks) < 25


def test_the_schedule_is_dense_at_first() -> None:
    schedule = RecheckSchedule()
    due = [number for number in range(301) if schedule.is_due()]
    assert due == [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300]


def test_a_batch_without_curvature_says_nothing() -> None:
    """A batch without labels; whatever is coupled, all rows together are right until a loss tells."""
    finder = CouplingFinder()
    assert finder(batch(torch.sum, 8)) is Coupling.BATCH and finder.coupling is None
    assert finder(batch(separate, 4)) is Coupling.ROWS
    assert finder(batch(torch.sum, 16)) is Coupling.ROWS
    assert finder(batch(contrastive, 8)) is Coupling.BATCH
