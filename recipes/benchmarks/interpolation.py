"""What hf_fam.gan.interpolate costs by the number of points and by the number of pairs.

    python recipes/benchmarks/interpolation.py                 # writes docs/generated/gan_interpolation/cost.md

CPU seconds of one search of a few steps, one thread, the range of the scores given; all sizes in turn, several rounds,
median and quartiles. Two settings: small perceptrons, whose time is that of calling operations, and the convolutional
networks of recipes/gan_interpolation, whose time is that of arithmetic.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_fam.gan import interpolate

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "gan_interpolation"))

from experiment.networks import LATENT, Critic, Generator  # noqa: E402

POINTS, PAIRS = (8, 16, 32, 64), (1, 2, 4, 8, 16)
FEW_PAIRS, FEW_POINTS = 2, 10
Size = tuple[int, int]
Networks = tuple[nn.Module, Callable[[Tensor], Tensor]]


def perceptrons() -> Networks:
    generator = nn.Sequential(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))
    return generator, nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))


def convolutions() -> Networks:
    return Generator(), Critic()


SETTINGS: dict[str, Callable[[], Networks]] = {"perceptrons": perceptrons, "convolutions, 28 × 28": convolutions}


def seconds(networks: Networks, size: Size, steps: int) -> float:
    pairs, points = size
    random = torch.Generator().manual_seed(0)
    z0, z1 = torch.randn(2, pairs, LATENT, generator=random)
    started = time.process_time()
    interpolate(networks[0], z0, z1, scorer=networks[1], points=points, steps=steps, score_range=(-1.0, 1.0))
    return time.process_time() - started


def measure(networks: Networks, steps: int, rounds: int) -> dict[Size, list[float]]:
    sizes = [(FEW_PAIRS, points) for points in POINTS] + [(pairs, FEW_POINTS) for pairs in PAIRS]
    for size in sizes:
        seconds(networks, size, 1)
    found: dict[Size, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            found[size].append(seconds(networks, size, steps))
    return found


def rows(name: str, found: dict[Size, list[float]], steps: int) -> list[str]:
    """Milliseconds a step, and the ratio to the smallest size round by round."""
    lines = []
    for axis, sizes in (
        ("points", [(FEW_PAIRS, points) for points in POINTS]),
        ("pairs", [(pairs, FEW_POINTS) for pairs in PAIRS]),
    ):
        for size in sizes:
            ratios = [one / least for one, least in zip(found[size], found[sizes[0]], strict=True)]
            a_step = [1000 * value / (steps + 1) for value in found[size]]
            cells = [name, axis, *map(str, size), with_quartiles(a_step), with_quartiles(ratios)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def with_quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="at least 2 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "generated" / "gan_interpolation" / "cost.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "| networks | grows | pairs | points | ms a step (quartiles) | times the smallest (quartiles) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, build in SETTINGS.items():
        lines += rows(name, measure(build(), options.steps, options.rounds), options.steps)
    lines.append(
        f"\n{options.rounds} rounds, {options.steps} steps, CPU time of one thread, torch {torch.__version__}."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
