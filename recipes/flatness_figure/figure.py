"""Two networks with the same training loss, one flat and one sharp, under noise on the features of the head.

    python recipes/flatness_figure/figure.py          # five minutes on one core
    python recipes/flatness_figure/figure.py --draw   # table and figure from the stored records

Trains pairs of small networks on scikit-learn's digits until the training loss is 0.1, with plain training and with
FAM. Writes ``generated/flatness_figure/`` and ``img/flatness.png`` in ``docs/``, for docs/flatness.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hf_fam import RelativeFlatness
from hf_fam.measure.plotting import new_figure, save
from hf_fam.measure.robustness import feature_robustness

DOCS = Path(__file__).parents[2] / "docs"
ITEMS, WIDTH, TARGET_LOSS, LEARNING_RATE, MOST_STEPS = 500, 64, 0.1, 1e-3, 5000
HEAD, MATRICES = "2", 16
DELTAS = tuple(k / 10 for k in range(1, 11))
SHOWN = (0.5, 1.0)
PLAIN, FAM = "plain training", "FAM"
STRENGTHS = {PLAIN: 0.0, FAM: 0.03}
COLORS = {PLAIN: "#D55E00", FAM: "#0072B2"}


@dataclass(frozen=True)
class Record:
    """One trained network.

    Attributes:
        method: a key of ``STRENGTHS``.
        seed: of the split of the data, of the initial weights and of the perturbations.
        steps: of training.
        loss: the training loss.
        kappa: relative flatness of the head on the training data.
        measured: training loss under feature noise, one value for each of ``DELTAS``.
        predicted: the quadratic prediction from kappa, one value for each of ``DELTAS``.
        test_loss: loss on the digits that are not in the training data.
        test_accuracy: accuracy on them, in percent.
    """

    method: str
    seed: int
    steps: int
    loss: float
    kappa: float
    measured: list[float]
    predicted: list[float]
    test_loss: float
    test_accuracy: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to (default: docs)")
    parser.add_argument("--seeds", type=int, default=20, help="pairs of networks (default: 20)")
    parser.add_argument("--draw", action="store_true", help="train nothing, read the stored records")
    options = parser.parse_args(arguments)
    folder = options.docs / "generated" / "flatness_figure"
    stored = folder / "records.json"
    if not options.draw:
        folder.mkdir(parents=True, exist_ok=True)
        records = [trained(method, seed) for seed in range(options.seeds) for method in STRENGTHS]
        stored.write_text(json.dumps([rounded(asdict(record)) for record in records], indent=1) + "\n")
    records = [Record(**values) for values in json.loads(stored.read_text())]
    (folder / "table.md").write_text(table(records))
    (options.docs / "img").mkdir(exist_ok=True)
    draw(records, options.docs / "img" / "flatness.png")
    print(table(records))


def trained(method: str, seed: int) -> Record:
    """Train one network to the target loss and measure it."""
    torch.manual_seed(seed)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x))
    x, y = x[order] / 16, y[order]
    model = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.GELU(), nn.Linear(WIDTH, 10)).double()
    steps = train(model, x[:ITEMS], y[:ITEMS], STRENGTHS[method])
    curve = feature_robustness(
        model,
        TensorDataset(x[:ITEMS], y[:ITEMS]),
        HEAD,
        DELTAS,
        samples=MATRICES,
        batch_size=ITEMS,
        loss_fn=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
        seed=seed,
    )
    with torch.no_grad():
        logits = model(x[ITEMS:])
    return Record(
        method,
        seed,
        steps,
        curve.loss,
        curve.kappa,
        [curve.loss + rise for rise in curve.measured],
        [curve.loss + rise for rise in curve.predicted],
        float(F.cross_entropy(logits, y[ITEMS:])),
        100 * float((logits.argmax(1) == y[ITEMS:]).double().mean()),
    )


def train(model: nn.Module, x: Tensor, y: Tensor, strength: float) -> int:
    """Minimize loss + strength * kappa until the loss alone reaches its target; return the number of steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    flatness = RelativeFlatness(model, HEAD)
    for step in range(MOST_STEPS):
        optimizer.zero_grad()
        with flatness.capture():
            loss = F.cross_entropy(model(x), y)
        if float(loss.detach()) <= TARGET_LOSS:
            flatness.detach()
            return step
        (loss + strength * flatness(loss)).backward()
        optimizer.step()
    raise RuntimeError(f"The loss did not reach {TARGET_LOSS} in {MOST_STEPS} steps.")


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Round numbers to six digits, far below their intervals."""

    def digits(value: Any) -> Any:
        if isinstance(value, list):
            return [digits(entry) for entry in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {name: digits(value) for name, value in values.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over the seeds and half of its 95 % interval (Student's t)."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(student.ppf(0.975, len(values) - 1)) * error


def table(records: Sequence[Record]) -> str:
    """Return what docs/flatness.md includes: one row for each quantity, one column for each method."""
    columns = {method: [record for record in records if record.method == method] for method in STRENGTHS}
    rows: list[tuple[str, int, Any]] = [
        ("training loss", 4, lambda record: record.loss),
        ("κ of the head", 1, lambda record: record.kappa),
    ]
    for delta in SHOWN:
        at = DELTAS.index(delta)
        rows.append((f"training loss at δ = {delta:g}", 3, lambda record, at=at: record.measured[at]))
        rows.append((f"predicted from κ at δ = {delta:g}", 3, lambda record, at=at: record.predicted[at]))
    rows.append(("test loss", 3, lambda record: record.test_loss))
    rows.append(("test accuracy, %", 1, lambda record: record.test_accuracy))
    lines = [f"| | {' | '.join(STRENGTHS)} | difference |", "| --- | ---: | ---: | ---: |"]
    for name, places, value in rows:
        plain, fam = ([value(record) for record in column] for column in columns.values())
        cells = [f"{mean:.{places}f} ± {half:.{places}f}" for mean, half in map(interval, (plain, fam))]
        mean, half = interval([after - before for before, after in zip(plain, fam, strict=True)])
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:+.{places}f} ± {half:.{places}f} |")
    pairs = len(columns[PLAIN])
    return "\n".join([*lines, "", f"Means over {pairs} seeds and their 95 % intervals.", ""])


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the loss under feature noise of both methods, and the predictions."""
    from matplotlib import rc_context

    with rc_context({"font.size": 12}):
        figure = new_figure(width=5.4, height=4.4)
        axes = figure.subplots()
        sizes = [0.0, *DELTAS]
        for method, color in COLORS.items():
            chosen = [record for record in records if record.method == method]
            curves = [interval(values) for values in zip(*([r.loss, *r.measured] for r in chosen), strict=True)]
            means = [mean for mean, _ in curves]
            axes.plot(sizes, means, color=color, linewidth=2.5)
            axes.fill_between(sizes, [m - h for m, h in curves], [m + h for m, h in curves], color=color, alpha=0.25)
            predicted = [
                statistics.mean(values) for values in zip(*([r.loss, *r.predicted] for r in chosen), strict=True)
            ]
            axes.plot(sizes, predicted, "--", color=color, linewidth=1.5)
            kappa = statistics.mean(record.kappa for record in chosen)
            at, offset = {PLAIN: (7, (-8, 4)), FAM: (9, (4, -24))}[method]
            axes.annotate(
                f"{method}, κ = {kappa:.0f}",
                (sizes[at], means[at]),
                offset,
                textcoords="offset points",
                color=color,
                ha="right",
                weight="bold",
            )
            if method == PLAIN:
                label = {"textcoords": "offset points", "color": color, "va": "top"}
                axes.annotate("predicted from κ", (sizes[7], predicted[7]), (-6, -14), **label)
        axes.set(xlim=(0, 1), ylim=(0, None))
        axes.set(xlabel="δ, size of the noise relative to the features", ylabel="training loss")
        axes.set_title("Same training loss, but noise on the\nfeatures hurts the flat network less", fontsize=13)
        axes.spines[["top", "right"]].set_visible(False)
        save(figure, path)


if __name__ == "__main__":
    main()
