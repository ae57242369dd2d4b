"""A small WGAN-LP learns a ring: the picture of docs/gan.md, as `WGANTrainer` draws it.

python recipes/wgan/ring.py --output docs/img/wgan-ring.png
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from hf_fam.gan import WGANTrainer, WGANTrainingArguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/wgan-ring.png"))
    parser.add_argument("--steps", type=int, default=300, help="generator steps (default: 300)")
    options = parser.parse_args()
    torch.manual_seed(0)
    ring = nn.functional.normalize(torch.randn(1000, 2))
    with tempfile.TemporaryDirectory() as folder:
        args = WGANTrainingArguments(
            folder, latent_size=4, max_generator_steps=options.steps, per_device_train_batch_size=256,
            learning_rate=1e-3, sample_count=256, use_cpu=True, report_to="none", save_strategy="no",
        )  # fmt: skip
        trainer = WGANTrainer(perceptron(4, 2), perceptron(2, 1), args, train_dataset=ring)
        trainer.train()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(trainer.save_samples()), options.output)


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
    )  # fmt: skip


if __name__ == "__main__":
    main()
