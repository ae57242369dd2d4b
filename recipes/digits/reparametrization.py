"""One network, one function, many weights: Tr H, lambda_max and ||W|| move by orders of magnitude, kappa does not.

    python recipes/digits/reparametrization.py --output docs/img/reparametrization.png

Trains a small ReLU network on scikit-learn's digits for a few seconds and rescales it, with growing factors, in ways
that leave its function as it is.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from network import digits, loss_fn, trained
from torch import nn
from torch.utils.data import TensorDataset

from hf_fam import measure_relative_flatness
from hf_fam.landscape.reparametrization import rescale_randomly
from hf_fam.measure import LayerFlatness
from hf_fam.measure.plotting import PALETTE, new_figure, save

LAYER = "second"
SPREADS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
QUANTITIES = {
    "kappa": "κ",
    "kappa_max": "κ_max",
    "hessian_trace": "Tr H",
    "hessian_max_eigenvalue": "λ_max of H",
    "weight_norm": "‖W‖",
}
# Of each quantity: its line, the width of the line, its color, and where its name stands, in points from the end.
STYLES = (
    ("o-", 2.5, "blue", (8, 7)),
    ("s--", 2.5, "sky", (8, -8)),
    ("^--", 1.2, "green", (8, -4)),
    ("v--", 1.2, "orange", (8, 4)),
    ("x--", 1.2, "pink", (8, 0)),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/reparametrization.png"))
    parser.add_argument("--items", type=int, default=500, help="how many digits to measure on (default: 500)")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    data = digits()
    model = trained(data, nn.ReLU)
    rows = [rescaled(model, data, spread, options.items) for spread in SPREADS]
    options.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, options.output)
    for name, title in QUANTITIES.items():
        values = [abs(row[name]) for row in rows]
        print(f"{title:<28} largest / smallest = {max(values) / min(values):.6g}")
    print(f"{'outputs':<28} largest difference  = {max(row['difference'] for row in rows):.2g} of their size")


def rescaled(original: nn.Sequential, data: TensorDataset, spread: float, items: int) -> dict[str, float]:
    """The network with random factors between 10^-spread and 10^spread for every neuron, measured."""
    model, x = copy.deepcopy(original), data.tensors[0]
    if spread:
        rescale_randomly(model, x[:100], spread=spread, seed=1)
    part = TensorDataset(*(t[:items] for t in data.tensors))

    def measured(measures: tuple[str, ...], normalize: bool) -> LayerFlatness:
        return measure_relative_flatness(
            model, part, LAYER, measures, loss_fn=loss_fn, normalize_features=normalize, probes=8, batch_size=250
        )[0]

    flat = measured(("trace", "max_eigenvalue"), True)
    plain = measured(("trace", "layerwise", "hessian_max_eigenvalue"), False)
    with torch.no_grad():
        before, after = original(x), model(x)
    return {
        "spread": spread,
        "kappa": flat.kappa,
        "kappa_max": flat.kappa_max or 0.0,
        "hessian_trace": plain.hessian_trace or 0.0,
        "hessian_max_eigenvalue": plain.hessian_max_eigenvalue or 0.0,
        "weight_norm": plain.weight_norm,
        "difference": float((after - before).abs().max() / before.abs().max()),
    }


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Draw the measures relative to the trained network, each with its name at the end of its line."""
    from matplotlib import rc_context

    with rc_context({"font.size": 12}):
        figure = new_figure(7.2, 4.2)
        axes = figure.subplots()
        spreads = [row["spread"] for row in rows]
        for (name, title), (style, width, color, place) in zip(QUANTITIES.items(), STYLES, strict=True):
            values = [abs(row[name] / rows[0][name]) for row in rows]
            axes.plot(spreads, values, style, linewidth=width, color=PALETTE[color])
            label = {"color": PALETTE[color], "weight": "bold", "textcoords": "offset points"}
            axes.annotate(title, (spreads[-1], values[-1]), place, va="center", **label)
        axes.set(yscale="log", ylim=(0.3, None), xlabel="factors of single neurons between 10⁻ˣ and 10ˣ")
        axes.set(ylabel="relative to the trained network")
        axes.set_title("The function stays, and so does κ; the other measures change", fontsize=13)
        axes.spines[["top", "right"]].set_visible(False)
        save(figure, path)


if __name__ == "__main__":
    main()
