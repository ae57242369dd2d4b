"""FashionMNIST, all 60,000 images, a wide residual network 16-8 in bfloat16: plain training, FAM and SAM. Exploratory.

    FASHION_MNIST=folder python -m recipes.gpu.fashion_mnist --seconds 90 --output out/gpu

As many epochs as fit, the same for all methods, each with two seeds. The learning rate falls to 0 over them. The images
stay on the device, and are moved and mirrored at random there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.recipes.common.fashion_mnist import TEST, TRAIN, read_images, read_labels, scale_images
from recipes.paper_table.networks import WideResNet, WideResNetConfig

METHODS, SEEDS = ("plain", "fam", "sam"), (0, 1)
# Passes of a step, against those of plain training.
PASSES = {"plain": 1.0, "fam": 1.0, "sam": 2.0}
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, RHO, LAMBDA = 0.1, 0.9, 5e-4, 0.05, 0.003


class Data:
    """Standardized images of 32 x 32 pixels with three equal channels, and labels, on the device."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        folder = os.environ.get("FASHION_MNIST")
        if tiny:
            images = [torch.rand(n, 1, 28, 28) for n in (64, 32)]
            labels = [torch.randint(10, (n,)) for n in (64, 32)]
        else:
            if not folder:
                raise SystemExit("not run: FASHION_MNIST must name the folder with the four files of the data set.")
            images = [scale_images(read_images(Path(folder), split)) for split in (TRAIN, TEST)]
            labels = [torch.from_numpy(read_labels(Path(folder), split)) for split in (TRAIN, TEST)]
        mean, deviation = images[0].mean(), images[0].std()
        padded = [F.pad((x - mean) / deviation, (2, 2, 2, 2)).expand(-1, 3, -1, -1) for x in images]
        self.train, self.test = (x.to(device) for x in padded)
        self.train_labels, self.test_labels = (y.to(device) for y in labels)


def augment(images: Tensor) -> Tensor:
    """Mirror every image or not, and move a batch by up to two pixels."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(flip, images.flip(-1), images)
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((down, right), (-2, -1))


def network(device: torch.device, tiny: bool) -> nn.Module:
    depth, width = (10, 1) if tiny else (16, 8)
    config = WideResNetConfig(depth=depth, width=width, num_labels=10)
    return WideResNet(config).to(device, memory_format=torch.channels_last)


class Training:
    """A training of one method."""

    def __init__(self, method: str, device: torch.device, tiny: bool, steps: int) -> None:
        self.model, self._device, self._method = network(device, tiny), device, method
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, LEARNING_RATE, total_steps=steps)
        self._flatness = RelativeFlatness(self.model) if method == "fam" else None

    def step(self, images: Tensor, labels: Tensor) -> None:
        self._gradients(images, labels)
        if self._method == "sam":
            weights = [p for p in self.model.parameters() if p.grad is not None]
            gradients = [p.grad.clone() for p in weights if p.grad is not None]
            scale = RHO / (torch.nn.utils.get_total_norm(gradients) + 1e-12)
            offsets = torch._foreach_mul(gradients, scale)
            with torch.no_grad():
                torch._foreach_add_(weights, offsets)
            self._gradients(images, labels)
            with torch.no_grad():
                torch._foreach_sub_(weights, offsets)
        self._optimizer.step()
        self._schedule.step()

    def _gradients(self, images: Tensor, labels: Tensor) -> None:
        self._optimizer.zero_grad()
        if self._flatness is None:
            self._loss(images, labels).backward()
            return
        with self._flatness.capture(LAMBDA):
            loss = self._loss(images, labels)
        (loss + LAMBDA * self._flatness(loss)).backward()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16):
            loss: Tensor = self.model(pixel_values=images, labels=labels).loss
        return loss

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        self.model.eval()
        with torch.autocast(self._device.type, torch.bfloat16):
            right = [(self.model(pixel_values=x).logits.argmax(-1) == y).sum() for x, y in
                     zip(images.split(1000), labels.split(1000), strict=True)]  # fmt: skip
        self.model.train()
        return float(torch.stack(right).sum()) / len(labels)


def epoch(data: Data, batch: int, step: Callable[[Tensor, Tensor], None], most: int | None = None) -> None:
    order = torch.randperm(len(data.train), device=data.train.device)
    for number, rows in enumerate(order.split(batch)[: len(order) // batch]):
        if number == most:
            return
        images = augment(data.train[rows]).contiguous(memory_format=torch.channels_last)
        step(images, data.train_labels[rows])


def epochs_that_fit(data: Data, batch: int, device: torch.device, tiny: bool, seconds: float) -> int:
    """Return the number of epochs that all methods and seeds can take, from some steps of plain training."""
    training, timed = Training("plain", device, tiny, 1000), 2 if tiny else 20
    epoch(data, batch, training.step, timed)
    training.accuracy(data.test[:1000], data.test_labels[:1000])  # waits for the device
    started = time.monotonic()
    epoch(data, batch, training.step, timed)
    training.accuracy(data.test[:1000], data.test_labels[:1000])
    of_epoch = (time.monotonic() - started) / timed * (len(data.train) // batch)
    return max(1, int(0.8 * seconds / (of_epoch * len(SEEDS) * sum(PASSES.values()))))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--tiny", action="store_true", help="random images and a tiny network: checks the script")
    options = parser.parse_args(arguments)
    device, batch = torch.device(options.device), 32 if options.tiny else 256
    options.output.mkdir(parents=True, exist_ok=True)
    data = Data(device, options.tiny)
    epochs = 1 if options.tiny else epochs_that_fit(data, batch, device, options.tiny, options.seconds)
    steps = epochs * (len(data.train) // batch)
    with open(options.output / "fashion_mnist.jsonl", "w", encoding="utf-8") as file:
        for seed in SEEDS:
            for method in METHODS:
                torch.manual_seed(seed)
                training, started = Training(method, device, options.tiny, steps), time.monotonic()
                for _ in range(epochs):
                    epoch(data, batch, training.step)
                accuracy = training.accuracy(data.test, data.test_labels)
                result = {"method": method, "seed": seed, "epochs": epochs, "accuracy": accuracy,
                          "seconds": time.monotonic() - started}  # fmt: skip
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(result, flush=True)


if __name__ == "__main__":
    main()
