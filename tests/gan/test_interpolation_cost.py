"""What interpolate costs, counted: calls, rows and operations, not seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_fam.gan import interpolate


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    make = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    return make, nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def counted(pairs: int, points: int, chunk_size: int | None) -> dict[str, int]:
    sizes: dict[str, list[int]] = {"generator": [], "scorer": []}

    def watched(name: str, network: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(rows: Tensor) -> Tensor:
            sizes[name].append(len(rows))
            return network(rows)

        return call

    make, critic = networks()
    z = torch.randn(pairs, 4).double()
    with FlopCounterMode(display=False) as flops:
        interpolate(
            watched("generator", make), z, -z, scorer=watched("scorer", critic), points=points,
            score_range=(-9.0, 0.0), steps=5, chunk_size=chunk_size,
        )  # fmt: skip
    assert chunk_size is None or max(sizes["generator"]) <= chunk_size
    result = {f"calls of the {name}": len(each) for name, each in sizes.items()}
    result |= {f"rows of the {name}": sum(each) for name, each in sizes.items()}
    return result | {"flops": flops.get_total_flops()}


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_linear_in_points(chunk_size: int | None) -> None:
    """As many more points cost as much more; the calls stay, or their number grows like the points in chunks of 4."""
    few, some, many = (counted(2, points, chunk_size) for points in (6, 14, 22))
    for name in few:
        assert many[name] - some[name] == some[name] - few[name], name
        assert (some[name] == few[name]) == (name.startswith("calls") and chunk_size is None), name


def test_the_ends_are_decoded_once_in_a_search() -> None:
    steps, pairs, points = 5, 3, 8
    assert counted(pairs, points, None)["rows of the generator"] == (
        (steps + 1) * pairs * (points - 2) + 2 * pairs + 3 * 4 * pairs * points
    )


def test_pairs_share_their_calls() -> None:
    """16 pairs make the calls of one pair, with 16 times the rows; nothing grows faster than the pairs."""
    one, many = counted(1, 8, None), counted(16, 8, None)
    for name in one:
        assert many[name] == (1 if name.startswith("calls") else 16) * one[name], name


def test_calibration_decodes_no_more_at_once_than_the_search() -> None:
    sizes: list[int] = []
    make, critic = networks()

    def generator(codes: Tensor) -> Tensor:
        sizes.append(len(codes))
        return make(codes)

    z = torch.randn(2, 4).double()
    interpolate(generator, z, -z, scorer=critic, points=5, steps=1, calibration=64)
    assert max(sizes) == 10 and sum(sizes) == 64 + 2 * 2 * 3 + 2 * 2 + 3 * 4 * 10
