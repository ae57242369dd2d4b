"""The toy experiment of the WGAN-LP paper at the settings of its released code: one and two sides over lambda.

python recipes/wgan/paper.py --output recipes/wgan/results/paper.jsonl     # goes on where it was stopped
python recipes/wgan/paper_report.py                                        # figures and table of docs/experiments.md

Released are (github.com/lukovnikov/qelos, qelos/scripts/wgan/ganbook.ipynb): a Swiss roll, three hidden layers of 512
with LeakyReLU, two normal latent variables, batches of 256, RMSprop at 5e-5, local points around real samples, 10
critic steps before a generator step, and 100 before each of the first 25 and every 500th. It takes 2,000 generator
steps and 20 seeds. Here it is one seed, with 300 generator steps at the released lambda of 10 and 100 at each other
lambda. A run of 300 takes four minutes of one core, a run of 100 two and a half.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from hf_fam.gan import WGANTrainer, WGANTrainingArguments
from recipes.wgan.data import toy
from recipes.wgan.networks import perceptron
from recipes.wgan.sweep import level_set

SIDES = ("one", "two")
# Generator steps at each lambda.
STEPS = {10.0: 300, 100.0: 100, 1.0: 100, 0.1: 100}
SETTINGS: dict[str, Any] = {
    "data": "swiss_roll",
    "width": 512,
    "train_samples": 100_000,  # they stand for an endless stream of points
    "batch_size": 256,
    "learning_rate": 5e-5,
    "n_critic": 10,
    "n_critic_warmup": 100,
    "n_critic_warmup_steps": 25,
    "n_critic_warmup_every": 500,
    "eval_samples": 1000,
    "measured_every": 10,
    "drawn_after": [10, 100, 300],
}


class Watch(TrainerCallback):
    """Measures and draws after some of the generator's steps."""

    def __init__(self, trainer: WGANTrainer, settings: dict[str, Any]) -> None:
        self.trainer, self.settings, self.seen = trainer, settings, 0
        self.record: dict[str, Any] = {name: [] for name in ("steps", "emd", "estimate", "violation")}
        self.record["drawn"] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = self.trainer.generator_steps
        if done == self.seen:
            return
        self.seen = done
        if done % self.settings["measured_every"] == 0:
            metrics = self.trainer.evaluate()
            self.record["steps"].append(done)
            for name, metric in (
                ("emd", "emd"), ("estimate", "wasserstein_estimate"), ("violation", "gradient_violation")
            ):  # fmt: skip
                self.record[name].append(float(f"{metrics[f'eval_{metric}']:.5g}"))
        if done in self.settings["drawn_after"]:
            levels = [[float(f"{value:.3g}") for value in row] for row in level_set(self.trainer)]
            points = [[round(x, 2) for x in point] for point in self.trainer.sample(256).tolist()]
            self.record["drawn"][str(done)] = {"levels": levels, "generated": points}


def trainer_of(side: str, strength: float, seed: int, folder: str, settings: dict[str, Any]) -> WGANTrainer:
    """One run, not yet trained; networks and data are a function of the seed."""
    schedule = {name: value for name, value in settings.items() if name.startswith("n_critic")}
    args = WGANTrainingArguments(
        output_dir=folder,
        seed=seed,
        latent_size=2,
        max_generator_steps=STEPS[strength],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["eval_samples"],
        learning_rate=settings["learning_rate"],
        optim="rmsprop",
        penalty=side,
        penalty_lambda=strength,
        penalty_points="local",
        eval_samples=settings["eval_samples"],
        eval_emd=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **schedule,
    )
    set_seed(seed)
    generator, critic = (perceptron(2, settings["width"], size, nn.LeakyReLU) for size in (2, 1))
    train, held_out = toy(settings["data"], settings["train_samples"], settings["eval_samples"], seed)
    trainer = WGANTrainer(generator, critic, args, train_dataset=train, eval_dataset=held_out)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(side: str, strength: float, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and measure."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(side, strength, seed, folder, settings)
        watch = Watch(trainer, settings)
        trainer.add_callback(watch)
        trainer.train()
    seconds = round(time.process_time() - start)
    return {"side": side, "strength": strength, "seed": seed, "settings": settings, "seconds": seconds, **watch.record}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; runs that are in it are not repeated")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    if any(record["settings"] != SETTINGS for record in records):
        raise SystemExit(f"{options.output} contains runs of other settings: give another file.")
    done = {(record["side"], record["strength"], record["seed"]) for record in records}
    for seed in range(options.seeds):
        for strength in STEPS:
            for side in SIDES:
                if (side, strength, seed) in done:
                    continue
                record = run(side, strength, seed, SETTINGS)
                with options.output.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"{side} {strength:g} seed {seed}: emd {record['emd'][-1]}, {record['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
