"""The example whose answer can be seen: the generator is the plane, the critic the logarithm of a ring's density.

    python recipes/gan_interpolation/ring.py

The end points are opposite on the ring, two apart. Writes docs/generated/gan_interpolation/ring.md and
docs/img/interpolation_ring.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from report import DOCS, FOLDER, table
from torch import Tensor

from hf_fam.gan import Interpolation, interpolate

SIGMA = 0.1
LEFT = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)


def profile(x: Tensor) -> Tensor:
    """A bell over the radius, -(r - 1)^2 / (2 sigma^2)."""
    return -((x.norm(dim=1) - 1) ** 2) / (2 * SIGMA**2)


def density(x: Tensor) -> Tensor:
    """The radius is N(1, sigma^2), the direction uniform: in the plane that is the bell over r, up to a constant."""
    return profile(x) - x.norm(dim=1).log()


CRITICS: dict[str, Callable[[Tensor], Tensor]] = {"−(r − 1)²/(2σ²)": profile, "−(r − 1)²/(2σ²) − log r": density}


@dataclass(frozen=True)
class Search:
    """Of the curve."""

    points: int
    degree: int
    steps: int
    learning_rate: float


SEARCHES = (
    Search(10, 3, 300, 1e-3),
    Search(24, 5, 100, 1e-3),
    Search(24, 5, 300, 1e-3),
    Search(24, 3, 1500, 1e-2),
)

HEADER = (
    "critic", "points", "degree", "steps", "learning rate", "worst, straight", "worst, found", "length, straight",
    "length, found",
)  # fmt: skip


def find(critic: Callable[[Tensor], Tensor], search: Search) -> Interpolation:
    return interpolate(
        lambda z: z, LEFT, -LEFT, scorer=critic, h=0.2, score_range=(-1 / (2 * SIGMA**2), 0.0), **vars(search)
    )


def row(name: str, critic: Callable[[Tensor], Tensor], search: Search) -> str:
    found = find(critic, search)
    numbers = [found.linear.worst_score, found.worst_score, found.linear.length, found.length]
    cells = [name, *map(str, vars(search).values()), *(f"{number.item():.2f}" for number in numbers)]
    return "| " + " | ".join(cells) + " |"


def draw(found: Interpolation, critic: Callable[[Tensor], Tensor], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axis = torch.linspace(-1.4, 1.4, 200, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    scores = critic(torch.stack([x, y], -1).reshape(-1, 2)).reshape(x.shape)
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    filled = axes.contourf(x, y, scores, levels=[-50, -40, -30, -20, -10, -5, -2, 0], cmap="Blues", extend="both")
    figure.colorbar(filled, label="score", shrink=0.8)
    axes.plot(*found.linear.samples[0].T, "o--", color="black", markersize=3, label="linear")
    axes.plot(*found.samples[0].T, "o-", color="tab:orange", markersize=3, label="critic, h = 0.2")
    axes.set_aspect("equal")
    axes.legend(loc="lower center", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS)
    docs = parser.parse_args(arguments).docs
    rows = [row(name, critic, search) for name, critic in CRITICS.items() for search in SEARCHES]
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ring.md").write_text(table(HEADER, []) + "\n".join(rows) + "\n")
    draw(find(density, SEARCHES[2]), density, docs / "img" / "interpolation_ring.png")


if __name__ == "__main__":
    main()
