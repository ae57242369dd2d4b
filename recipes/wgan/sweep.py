"""Compare one-sided penalty, two-sided penalty and weight clipping over their strengths, on one toy distribution.

python recipes/wgan/sweep.py --output recipes/wgan/results/sweep.jsonl     # goes on where it was stopped
python recipes/wgan/report.py                                              # tables and figures of docs/experiments.md

Everything but the Lipschitz condition is the same in all runs: networks, data and draws of a seed, Adam, number of
steps. The settings were fixed before the first run: of three pairs of learning rates, the first one with which both
penalties, with lambda = 10 and another seed (100), kept approaching the data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from hf_fam.gan import WGANTrainer, WGANTrainingArguments
from recipes.wgan.run import GanArguments, make_trainer

ONE, TWO, CLIPPING = "one", "two", "clipping"
STRENGTHS = {
    ONE: (0.1, 1.0, 10.0, 100.0),
    TWO: (0.1, 1.0, 10.0, 100.0),
    CLIPPING: (0.01, 0.03, 0.1, 0.3),  # limits of the weights
}
SETTINGS: dict[str, Any] = {
    "data": "swiss_roll",
    "width": 64,
    "train_samples": 20_000,
    "generator_steps": 300,
    "n_critic": 5,
    "batch_size": 128,
    "critic_learning_rate": 1e-3,
    "generator_learning_rate": 2e-4,
    "eval_samples": 1000,
}
# The critic's outputs on this many points a side, around the data, are kept of the first seed.
GRID, REACH = 41, 2.4


def trainer_of(condition: str, strength: float, seed: int, folder: str, settings: dict[str, Any]) -> WGANTrainer:
    """One run, not yet trained."""
    lipschitz = (
        {"penalty": "none", "clip_limit": strength}
        if condition == CLIPPING
        else {"penalty": condition, "penalty_lambda": strength}
    )
    args = WGANTrainingArguments(
        output_dir=folder,
        seed=seed,
        latent_size=2,
        max_generator_steps=settings["generator_steps"],
        n_critic=settings["n_critic"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["eval_samples"],
        critic_learning_rate=settings["critic_learning_rate"],
        generator_learning_rate=settings["generator_learning_rate"],
        eval_samples=settings["eval_samples"],
        eval_emd=True,
        logging_steps=settings["n_critic"],
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **lipschitz,
    )
    gan = GanArguments(data=settings["data"], width=settings["width"], train_samples=settings["train_samples"])
    trainer = make_trainer(gan, args)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(condition: str, strength: float, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and measure.

    The critic's loss is logged as its mean over the critic steps of each generator step. ``loss_spread`` is the
    standard deviation of these over the second half of the training, ``loss_jumps`` that of their differences from one
    to the next, which a slow drift does not enter.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(condition, strength, seed, folder, settings)
        trainer.train()
        metrics = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    half = losses[len(losses) // 2 :]
    record = {
        "condition": condition,
        "strength": strength,
        "seed": seed,
        "emd": metrics["eval_emd"],
        "wasserstein_estimate": metrics["eval_wasserstein_estimate"],
        "gradient_violation": metrics["eval_gradient_violation"],
        "loss_spread": statistics.stdev(half),
        "loss_jumps": statistics.stdev(b - a for a, b in itertools.pairwise(half)),
        "losses": [float(f"{loss:.4g}") for loss in losses[:: max(1, len(losses) // 100)]],
        "seconds": round(time.perf_counter() - start, 1),
        "settings": settings,
    }
    if seed == 0:
        record["critic"], record["generated"] = level_set(trainer), trainer.sample(300).tolist()
        record["generated"] = [[round(x, 3) for x in point] for point in record["generated"]]
    return record


@torch.no_grad()
def level_set(trainer: WGANTrainer) -> list[list[float]]:
    """The critic on a grid, row by row from below, its mean subtracted."""
    axis = torch.linspace(-REACH, REACH, GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    values = trainer.critic(torch.stack([x, y], -1).reshape(-1, 2)).reshape(GRID, GRID)
    return [[float(f"{v:.4g}") for v in row] for row in (values - values.mean()).tolist()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; runs that are in it are not repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generator_steps", type=int, default=SETTINGS["generator_steps"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    settings = {**SETTINGS, "generator_steps": options.generator_steps}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(r["condition"], r["strength"], r["seed"]) for r in map(json.loads, lines) if r["settings"] == settings}
    if len(done) != len(lines):
        raise SystemExit(f"{options.output} contains runs of other settings: give another file.")
    for seed in range(options.seeds):
        for condition, strengths in STRENGTHS.items():
            for strength in strengths:
                if (condition, strength, seed) in done:
                    continue
                record = run(condition, strength, seed, settings)
                with options.output.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(
                    f"{condition} {strength:g} seed {seed}: emd {record['emd']:.3f}, {record['seconds']} s", flush=True
                )


if __name__ == "__main__":
    main()
