"""Train a Wasserstein GAN on a toy distribution or on FashionMNIST.

python recipes/wgan/run.py recipes/wgan/swiss_roll.yaml --output_dir out/swiss_roll
python recipes/wgan/run.py recipes/wgan/fashion_mnist.yaml --data_dir fashion_mnist --output_dir out/fashion_mnist
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

sys.path.append(str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from transformers import set_seed

from hf_fam.gan import WGANTrainer, WGANTrainingArguments
from hf_fam.processes.leaving import leave
from hf_fam.recipes.common.parsing import parse
from recipes.wgan.data import DATA, FASHION_MNIST, fashion_mnist, toy
from recipes.wgan.networks import image_networks, plane_networks


@dataclass
class GanArguments:
    """What is generated, and by networks of which size."""

    data: str = field(default="swiss_roll", metadata={"help": f"One of {', '.join(DATA)}."})
    data_dir: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Folder with FashionMNIST's four files, as published."}
    )
    train_samples: int = field(
        default=20_000, metadata={"help": "Points of a toy distribution, or at most so many images."}
    )
    width: int = field(default=64, metadata={"help": "Neurons in a layer, or channels."})

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise ValueError(f"data={self.data!r}: choose one of {', '.join(DATA)}.")
        if self.data == FASHION_MNIST and self.data_dir is None:
            raise ValueError("data='fashion_mnist' needs --data_dir, the folder with its files.")


def make_trainer(gan: GanArguments, args: WGANTrainingArguments, **given: Any) -> WGANTrainer:
    """The trainer; networks and data are a function of the seed."""
    set_seed(args.seed)
    latent_size = args.latent_size or 2
    args.latent_size = latent_size
    if gan.data == FASHION_MNIST:
        train, held_out = fashion_mnist(Path(str(gan.data_dir)))
        train = train[: gan.train_samples]
        generator, critic = image_networks(latent_size, gan.width)
        # Without a network that was trained on images, the pixels of quarter-size images are the features.
        given.setdefault("features", small_pixels)
    else:
        train, held_out = toy(gan.data, gan.train_samples, args.eval_samples, args.seed)
        generator, critic = plane_networks(latent_size, gan.width)
    return WGANTrainer(generator, critic, args=args, train_dataset=train, eval_dataset=held_out, **given)


def small_pixels(images: Tensor) -> Tensor:
    """Images of 28 x 28 pixels as 49 numbers each."""
    return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    gan, args = parse((GanArguments, WGANTrainingArguments), argv)
    trainer = make_trainer(gan, args)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
    leave(0)
