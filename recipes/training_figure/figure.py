"""The figure of docs/quickstart.md: training loss and kappa of plain training and of FAM, epoch by epoch.

    python recipes/training_figure/figure.py --output docs/img/training.png

Trains a small network on scikit-learn's digits with `FAMTrainer`, in seconds. Both trainings are measured on the
training data after every epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import set_seed
from transformers.utils import logging

from hf_fam import FAMTrainer, FAMTrainingArguments, FlatnessCallback
from hf_fam.measure.plotting import new_figure, save

STRENGTHS: dict[str, float | None] = {"plain training": 0.0, "FAM": None}
COLORS = {"plain training": "#D55E00", "FAM": "#0072B2"}
ITEMS = 500
Curve = list[tuple[float, float]]  # loss and kappa after every epoch


class Network(nn.Module):
    """A small network that returns its loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(nn.functional.gelu(self.hidden(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/training.png"))
    parser.add_argument("--epochs", type=int, default=12, help="default: 12")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    curves = {
        method: [trained(strength, seed, options.epochs) for seed in range(options.seeds)]
        for method, strength in STRENGTHS.items()
    }
    for method, runs in curves.items():
        loss, kappa = (statistics.mean(values) for values in zip(*(run[-1] for run in runs), strict=True))
        print(f"{method}: loss {loss:.2f}, kappa {kappa:.1f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, options.output)


def trained(strength: float | None, seed: int, epochs: int) -> Curve:
    """Train once and return what was measured after every epoch."""
    x, y = (torch.tensor(part[:ITEMS]) for part in load_digits(return_X_y=True))
    data = [{"x": row / 16, "labels": label} for row, label in zip(x.float(), y, strict=True)]
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = FAMTrainingArguments(
            output_dir=folder, fam_lambda=strength, seed=seed, learning_rate=5e-3, num_train_epochs=epochs,
            lr_scheduler_type="constant", eval_strategy="epoch", save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, per_device_train_batch_size=32, per_device_eval_batch_size=ITEMS,
        )  # fmt: skip
        trainer = FAMTrainer(model=Network(), args=args, train_dataset=data, eval_dataset=data)
        trainer.add_callback(FlatnessCallback(layers=["head"], items=ITEMS))
        trainer.train()
    return [(entry["eval_loss"], entry["eval_kappa"]) for entry in trainer.state.log_history if "eval_kappa" in entry]


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """Draw the means over the seeds and the range of the runs."""
    from matplotlib import rc_context

    with rc_context({"font.size": 12}):
        figure = new_figure(width=7.2, height=3.6)
        loss, kappa = figure.subplots(1, 2)
        for place, axes in enumerate((loss, kappa)):
            for method, runs in curves.items():
                epochs = range(1, len(runs[0]) + 1)
                values = [[point[place] for point in points] for points in zip(*runs, strict=True)]
                means, color = [statistics.mean(v) for v in values], COLORS[method]
                axes.plot(epochs, means, color=color, linewidth=2.5)
                axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.25)
                if axes is kappa:
                    middle = len(means) // 2
                    label = {"color": color, "weight": "bold", "textcoords": "offset points"}
                    axes.annotate(method, (epochs[middle], means[middle]), (6, 6), **label)
            axes.set(xlabel="epoch", ylim=(0, None))
            axes.locator_params(axis="x", integer=True)
            axes.spines[["top", "right"]].set_visible(False)
        loss.set(title="training loss")
        kappa.set(title="κ of the head")
        figure.suptitle("With FAM the loss falls as in plain training, and κ stays smaller", fontsize=13)
        save(figure, path)


if __name__ == "__main__":
    main()
