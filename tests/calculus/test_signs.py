"""Signs that are a function of numbers: fair, independent of each other, and the same however a batch is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_fam import RelativeFlatness
from hf_fam.calculus.signs import key, signs, subkeys
from hf_fam.flatness.batch import Seeds
from hf_fam.flatness.coupling import Coupling
from hf_fam.flatness.directions import draw
from hf_fam.layer.linear_map import RowMap

CPU = torch.device("cpu")


def splitmix64(state: int, count: int) -> list[int]:
    """The reference, in Python's integers."""
    mask, states = 2**64 - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        x = state
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        states.append(x ^ (x >> 31))
    return states


def test_numbers_are_those_of_splitmix64() -> None:
    start = key((3, "r"), CPU)
    numbers = [int(x) % 2**64 for x in subkeys(start, torch.arange(100))]
    assert numbers == splitmix64(int(start) % 2**64, 100)
    # The published first values for the seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(x) % 2**64 for x in subkeys(torch.tensor(1234567), torch.arange(3))] == published


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_fewer_signs_are_the_first_of_more(count: int) -> None:
    keys = subkeys(key((0,), CPU), torch.arange(3))
    many = signs(keys, 400, torch.float64)
    few = signs(keys, count, torch.float64)
    assert few.shape == (3, count) and few.dtype == torch.float64
    assert torch.equal(few, many[:, :count]) and set(many.unique().tolist()) == {-1.0, 1.0}


def test_signs_are_fair_and_uncorrelated() -> None:
    """Over steps, probes and streams, items, positions and features; 5 standard deviations of the largest of many."""
    n = 256
    sets = {
        "steps": torch.stack([signs(key((0, step, 0, "r"), CPU), n, torch.float64) for step in range(n)]),
        "streams": torch.stack([signs(key((0, 0, k // 2, "ra"[k % 2]), CPU), n, torch.float64) for k in range(n)]),
        "items": signs(subkeys(key((0, 1), CPU), torch.arange(n) << 32), n, torch.float64),
        "positions": signs(subkeys(key((0, 1), CPU), (7 << 32) + torch.arange(n)), n, torch.float64),
    }
    bound = 5.5 / n**0.5
    for name, sample in sets.items():
        for rows in (sample, sample.T):
            correlation = rows @ rows.T / n - torch.eye(n)
            assert correlation.abs().max() < bound, name
            assert rows.mean(1).abs().max() < bound, name
    for one in sets:
        for other in sets:
            assert one == other or (sets[one] * sets[other]).mean().abs() < 5 / n


def draw_rows(features: Tensor, coupling: Coupling, seeds: Seeds) -> Tensor:
    m = features.shape[-1]
    identity = RowMap(m, m, lambda: torch.eye(m, dtype=features.dtype))
    return draw([features], identity, coupling, seeds)[0]


@pytest.mark.parametrize("coupling", Coupling)
@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 5), (8, 2, 3, 5)])
def test_directions_do_not_depend_on_the_cut(shape: tuple[int, ...], coupling: Coupling) -> None:
    phi = torch.randint(-9, 10, shape).double()  # whole numbers, so that sums are exact in every order
    whole = draw_rows(phi, coupling, Seeds((4, 2)))
    for size in (1, 2, 3, 8):
        parts = [draw_rows(phi[k : k + size], coupling, Seeds((4, 2), first_item=k)) for k in range(0, 8, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_flattening_and_padding_do_not_change_the_signs() -> None:
    phi = torch.randn(8, 3, 5, dtype=torch.float64)
    whole = draw_rows(phi, Coupling.ROWS, Seeds((1,)))
    flat = draw_rows(phi[2:6].flatten(0, 1), Coupling.ROWS, Seeds((1,), first_item=2, items=4))
    assert torch.equal(flat.view(4, 3, 5), whole[2:6])
    padded = torch.cat([phi, torch.zeros(8, 2, 5, dtype=torch.float64)], dim=1)
    assert torch.equal(draw_rows(padded, Coupling.ROWS, Seeds((1,)))[:, :3], whole)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (1, 5), (0, 5)])
def test_rows_that_are_no_multiple_of_the_items(shape: tuple[int, ...]) -> None:
    phi = torch.randn(shape)
    assert draw_rows(phi, Coupling.ROWS, Seeds((1,), first_item=3, items=4)).shape == phi.shape


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("pooled", [False, True], ids=["positions_on_their_own", "positions_coupled"])
def test_kappa_of_a_convolution_does_not_depend_on_the_cut(estimator: str, pooled: bool) -> None:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.MaxPool2d(4)
    layers = [nn.Conv2d(2, 6, 3, padding=1, groups=2), nn.Tanh(), pool, nn.Flatten(), nn.Linear(6, 3)]
    model, images = nn.Sequential(*layers).double(), torch.randn(8, 2, 4, 4, dtype=torch.float64)
    labels = torch.arange(8) % 3
    flatness = RelativeFlatness(model, "0", estimator)

    def kappa(start: int, stop: int) -> Tensor:
        flatness.seed(3, 1, first_item=start)
        with flatness.capture():
            loss = nn.functional.cross_entropy(model(images[start:stop]), labels[start:stop], reduction="sum")
        return flatness(loss)

    whole = kappa(0, 8)
    for size in (1, 2, 4):
        parts = [kappa(k, k + size) for k in range(0, 8, size)]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-10, atol=0)
