"""LeNet-5 on CIFAR-10, trained to a training loss that is the same for all networks."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The loss of a network differs from the target by at most this.
TOLERANCE = 5e-4


@dataclass(frozen=True)
class Setting:
    """One training."""

    optimizer: str
    learning_rate: float
    batch_size: int
    weight_decay: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.optimizer}-{self.learning_rate:g}-{self.batch_size}-{self.weight_decay:g}-{self.seed}"


@dataclass(frozen=True)
class Split:
    """Images, standardized, and classes."""

    images: Tensor
    labels: Tensor


class LeNet5(nn.Module):
    """Two convolutions, three linear layers, ReLU and maximum pooling (LeCun et al. 1998, with today's parts)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.head = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fc2(self.features(x))))

    def features(self, x: Tensor) -> Tensor:
        """Return the features that enter fc2."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.fc1(torch.flatten(x, 1)))


def read_cifar10(folder: Path, train_items: int) -> tuple[Split, Split]:
    """Training images (the first of each class, as many of each) and all test images.

    Args:
        folder: contains ``train-15k.parquet`` and ``test.parquet`` with columns ``image`` and ``label``.
        train_items: how many of the training images.
    """
    import pandas
    from PIL import Image

    def read(name: str, per_class: int | None) -> tuple[np.ndarray, np.ndarray]:
        frame = pandas.read_parquet(folder / name)
        if per_class is not None:
            frame = frame[frame.groupby("label").cumcount() < per_class]
        pixels = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in frame["image"]]
        return np.stack(pixels).astype(np.float32) / 255, frame["label"].to_numpy()

    train, test = read("train-15k.parquet", train_items // 10), read("test.parquet", None)
    mean, deviation = train[0].mean((0, 1, 2)), train[0].std((0, 1, 2))

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        standardized = ((images - mean) / deviation).transpose(0, 3, 1, 2)
        return Split(torch.from_numpy(np.ascontiguousarray(standardized)), torch.from_numpy(labels.astype(np.int64)))

    return split(*train), split(*test)


def train(setting: Setting, data: Split, target: float, most_epochs: int) -> tuple[LeNet5, dict[str, Any]]:
    """Train until the loss over the whole training set is the target.

    The loss is evaluated once an epoch when the running loss is near the target, and four times an epoch close to it.
    When it is below the target, the network is the one on the straight line from the last evaluation whose loss is the
    target.
    """
    torch.manual_seed(setting.seed)
    model = LeNet5()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}[setting.optimizer]
    extra = {"momentum": 0.9} if setting.optimizer == "sgd" else {}
    optimizer = kind(model.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay, **extra)
    steps = math.ceil(len(data.labels) / setting.batch_size)
    quarter = math.ceil(steps / 4)
    running, last_loss, last_model = math.inf, math.inf, copy.deepcopy(model)
    for step in range(1, steps * most_epochs + 1):
        place = (step - 1) % steps
        if place == 0:
            order = torch.randperm(len(data.labels))
        chosen = order[place * setting.batch_size :][: setting.batch_size]
        loss = F.cross_entropy(model(data.images[chosen]), data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share = 2 / (steps + 1)
        running = loss.item() if running == math.inf else (1 - share) * running + share * loss.item()
        if not math.isfinite(running) or (step > 30 * steps and running > 2.2):
            break  # diverged, or every unit is dead
        if step % (quarter if last_loss < 1.5 * target else steps):
            continue
        if running < 3 * target:
            last_loss, _ = evaluate(model, data)
            if last_loss <= target:
                model, length = at_loss(target, last_model, model, data)
                return model, {"converged": True, "epochs": step / steps, "interpolated": length}
        last_model = copy.deepcopy(model)
    return model, {"converged": False, "epochs": step / steps}


@torch.no_grad()
def at_loss(target: float, above: LeNet5, below: LeNet5, data: Split) -> tuple[LeNet5, float]:
    """Return the network with the target loss on the line between two networks, by bisection.

    The second value is its place, from 0 to 1.
    """
    low, high = 0.0, 1.0
    model = copy.deepcopy(below)
    for _ in range(30):
        middle = (low + high) / 2
        for p, a, b in zip(model.parameters(), above.parameters(), below.parameters(), strict=True):
            p.copy_(torch.lerp(a, b, middle))
        loss, _ = evaluate(model, data)
        if abs(loss - target) <= TOLERANCE:
            return model, middle
        low, high = (middle, high) if loss > target else (low, middle)
    raise RuntimeError(f"no network with the loss {target} between two networks")


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    logits = torch.cat([model(x) for x in data.images.split(500)])
    model.train()
    accuracy = (logits.argmax(1) == data.labels).double().mean()
    return F.cross_entropy(logits.double(), data.labels).item(), accuracy.item()
