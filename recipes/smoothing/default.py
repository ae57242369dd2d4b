"""Should FAM smooth kappa by default? FAM with fam_smoothing 0 and 0.1, nothing tuned, on frozen features.

    python recipes/smoothing/default.py --data DATA --output docs/generated/smoothing

The rule, written before the first run: 0.1 becomes the default if, averaged over the tasks, it lowers the NLL (95 %
interval over seeds below 0), loses at most a quarter point of accuracy (lower limit), and loses half a point or more on
no task. Otherwise the default stays 0, the papers' kappa.

The head trains with the Trainer for 10 and for 60 epochs, at a learning rate of 0.01 and the default strength.
Finished runs are kept in ``runs.csv``, and the same command carries on. DATA has the folders
that ``recipes/comparison/harness/tasks.py`` names. It needs what recipes/comparison/README.md lists.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import transformers
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "comparison"))
from harness.regimes import REGIMES
from harness.tasks import Task
from harness.trainers import Trainers

from hf_fam.methods import method_called

SEEDS, EPOCHS = range(500, 510), (10, 60)
VARIANTS = {"plain": None, "fam": 0.0, "fam, smoothing 0.1": 0.1}
TEXTS = {"shots": 10, "classes": 20, "test": 800}
TASKS = (
    *(Task("banking77", **TEXTS, noise=noise) for noise in (0.0, 0.2, 0.4)),
    *(Task("sst2", shots=40, noise=noise) for noise in (0.0, 0.2)),
    *(Task("cifar10", shots=100, test=1000, noise=noise) for noise in (0.0, 0.2, 0.4)),
    *(Task("fashion_mnist", shots=30, test=1000, noise=noise) for noise in (0.0, 0.2)),
)
KEYS = ["epochs", "task", "seed", "method"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; without it, only the table is written")
    parser.add_argument("--output", type=Path, default=Path("out/smoothing"))
    parser.add_argument("--cache", type=Path, default=Path("out/comparison"), help="folder for frozen features")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "runs.csv"
    if options.data is not None:
        carry_out(file, options.data, options.cache)
    (options.output / "default.md").write_text(report(pandas.read_csv(file)), encoding="utf-8")


def carry_out(file: Path, data: Path, cache: Path) -> None:
    """Make the runs that are missing, and append each when it ends."""
    transformers.logging.set_verbosity_error()
    done = {tuple(row) for row in pandas.read_csv(file)[KEYS].itertuples(index=False)} if file.exists() else set()
    for epochs in EPOCHS:
        for task in TASKS:
            for seed in SEEDS:
                for name, smoothing in VARIANTS.items():
                    run = (epochs, task.key, seed, name)
                    if run not in done:
                        row = pandas.DataFrame([[*run, *score(task, seed, epochs, smoothing, data, cache)]])
                        row.columns = pandas.Index([*KEYS, "accuracy", "nll"])
                        row.to_csv(file, mode="a", header=not file.exists(), index=False)


def score(task: Task, seed: int, epochs: int, smoothing: float | None, data: Path, cache: Path) -> tuple[float, float]:
    """Return accuracy in percent and NLL on the test set; smoothing None is plain training."""
    fam: dict[str, Any] = {} if smoothing is None else {"smoothing": smoothing}
    settings = REGIMES["head"].Settings(tokens="mean", epochs=epochs, fam=fam)
    return score_of(Trainers(task, "head", settings, data, cache), seed, smoothing)


def score_of(trainers: Trainers, seed: int, smoothing: float | None) -> tuple[float, float]:
    """Return accuracy in percent and NLL on the test set; smoothing None is plain training."""
    trainer = trainers(seed)
    trainer.args.disable_tqdm = True
    method_called("plain" if smoothing is None else "fam")(None).resolve(trainer).apply(trainer)
    trainer.train()
    predicted: Any = trainer.predict(trainers.test_dataset())
    logits, labels = predicted.predictions.astype(np.float64), predicted.label_ids
    log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    accuracy = float(100 * (logits.argmax(1) == labels).mean())
    return accuracy, float(-log_p[np.arange(len(labels)), labels].mean())


def report(runs: pandas.DataFrame, column: str = "epochs") -> str:
    """Return the table, and what the rule says of each value of a column."""
    lines = [f"| {column} | task | accuracy: plain | fam | smoothed | smoothed - fam | NLL: plain | fam | smoothed |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    _, fam, smoothed = VARIANTS
    verdicts = []
    for value, part in runs.groupby(column):
        wide = part.pivot_table(index=["task", "seed"], columns="method", values=["accuracy", "nll"])
        gain = wide["accuracy"][smoothed] - wide["accuracy"][fam]
        means = wide.groupby("task").mean()
        for task, row in means.iterrows():
            accuracies = " | ".join(f"{row['accuracy', name]:.1f}" for name in VARIANTS)
            nll = " | ".join(f"{row['nll', name]:.3f}" for name in VARIANTS)
            lines.append(f"| {value} | {task} | {accuracies} | {interval(gain[task], '+.1f')} | {nll} |")
        seeds = part["seed"].nunique()
        of_seeds = gain.groupby("seed").mean()
        nll_of_seeds = (wide["nll"][smoothed] - wide["nll"][fam]).groupby("seed").mean()
        worst = gain.groupby("task").mean().min()
        is_kept = limits(nll_of_seeds)[1] < 0 and limits(of_seeds)[0] >= -0.25 and worst > -0.5
        name = f"{value} epochs" if column == "epochs" else f"{value}, {seeds} seeds"
        verdicts.append(
            f"{name}: accuracy {interval(of_seeds, '+.2f')} points, NLL {interval(nll_of_seeds, '+.3f')}, "
            f"worst task {worst:+.1f} points. The rule {'holds' if is_kept else 'does not hold'}."
        )
    seeds = f"{runs['seed'].nunique()} seeds, " if column == "epochs" else ""
    note = f"FAM with `fam_smoothing=0.1` minus FAM without, {seeds}95 % intervals; nothing is tuned."
    return "\n".join([*lines, "", note, "", *(f"- {verdict}" for verdict in verdicts), ""])


def interval(values: pandas.Series, form: str) -> str:
    """Return a mean with its 95 % interval."""
    low, high = limits(values)
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"


def limits(values: pandas.Series) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by the t distribution."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


if __name__ == "__main__":
    main()
