"""Loss, kappa and smoothed kappa of one head whose weights grow: confidence counts as flat for one of them.

    python recipes/smoothing/figure.py --output docs/img/smoothing.png

Fits a linear head to two of scikit-learn's digits, which it separates, and multiplies its weights by growing numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.measure.plotting import new_figure, save

DIGITS, SMOOTHING, STEPS = (3, 8), 0.1, 300
FACTORS = torch.logspace(-2, 2, 81, dtype=torch.float64).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/smoothing.png"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    features, labels = digits()
    head = separating_head(features, labels)
    rows = [values(head, features, labels, factor) for factor in FACTORS]
    draw(rows, options.output)
    print(f"{'factor':>8} {'loss':>10} {'kappa':>10} {'smoothed':>10}")
    for factor, row in list(zip(FACTORS, rows, strict=True))[::10]:
        print(f"{factor:8.3g} {row[0]:10.3g} {row[1]:10.3g} {row[2]:10.3g}")


def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x) / 16, torch.tensor(y)
    chosen = (y == DIGITS[0]) | (y == DIGITS[1])
    x = x[chosen]
    return x - x.mean(0), (y[chosen] == DIGITS[1]).long()


def separating_head(features: Tensor, labels: Tensor) -> nn.Linear:
    head = nn.Linear(features.shape[1], 2).double()
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head(features), labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert (head(features).argmax(-1) == labels).all(), "the digits are not separated"
    with torch.no_grad():  # factor 1: a margin of 1 at the mean
        logits = head(features)
        size = (logits[:, 1] - logits[:, 0]).abs().mean()
        for parameter in head.parameters():
            parameter /= size
    return head


def values(head: nn.Linear, features: Tensor, labels: Tensor, factor: float) -> tuple[float, float, float]:
    """Loss, kappa and smoothed kappa of the head with its weights multiplied by a factor."""
    scaled = nn.Linear(head.in_features, head.out_features).double()
    scaled.load_state_dict({name: factor * value for name, value in head.state_dict().items()})
    found = []
    for smoothing in (0.0, SMOOTHING):
        flatness = RelativeFlatness(nn.Sequential(scaled), smoothing=smoothing)
        with flatness.capture():
            loss = F.cross_entropy(scaled(features), labels)
        found.append(float(flatness(loss).detach()))
        flatness.detach()
    return float(loss.detach()), found[0], found[1]


def draw(rows: list[tuple[float, float, float]], path: Path) -> None:
    figure = new_figure(width=7, height=4)
    axes = figure.subplots()
    names = ("loss", "κ", f"smoothed κ, ε = {SMOOTHING}")
    colors = ("#555555", "#D55E00", "#0072B2")
    for column, (name, color) in enumerate(zip(names, colors, strict=True)):
        curve = [row[column] for row in rows]
        axes.plot(FACTORS, curve, color=color, linewidth=2)
        at = {0: 12, 1: 57, 2: 66}[column]
        offset = {0: (0, 8), 1: (8, 4), 2: (-8, 6)}[column]
        align = "right" if column == 2 else "left"
        axes.annotate(name, (FACTORS[at], curve[at]), offset, textcoords="offset points", color=color, ha=align)
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(1e-6, None),
        xlabel="mean margin of the logits, as all weights grow",
        ylabel="value",
        title="An overconfident head counts as flat, unless κ is smoothed",
    )
    save(figure, path)


if __name__ == "__main__":
    main()
