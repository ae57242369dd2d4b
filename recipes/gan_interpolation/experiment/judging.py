"""How real an image looks to a network that has only seen real images.

The judge is a classifier of FashionMNIST's training images. How far an image is from real ones is its distance, in the
judge's last hidden layer, to the fifth nearest of the 10,000 real test images, over the mean of that distance for the
test images themselves: 1 is as near to real images as they are to each other. The distance and not the classifier's
confidence, because classifiers are confident of many images that look like none; the confidence is measured beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .networks import Judge

NEIGHBOUR = 5


class Jury:
    """A judge with the real images that it compares with."""

    @torch.no_grad()
    def __init__(self, judge: Judge, real: Tensor, labels: Tensor) -> None:
        self.judge = judge
        self.real = self._features(real)
        self.unit = self._distances(self.real, NEIGHBOUR + 1).mean()  # the first neighbor is the image itself
        self.accuracy = float((judge.logits(self.real).argmax(1) == labels).float().mean())

    @torch.no_grad()
    def distance(self, images: Tensor) -> Tensor:
        """To the fifth nearest real image, in units of real images' own; (n,)."""
        return self._distances(self._features(images), NEIGHBOUR) / self.unit

    @torch.no_grad()
    def confidence(self, images: Tensor) -> Tensor:
        """The largest probability of a class, (n,)."""
        return self.judge.logits(self._features(images)).softmax(1).amax(1)

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self.judge.features(part) for part in images.split(500)])

    def _distances(self, features: Tensor, neighbor: int) -> Tensor:
        parts = [torch.cdist(part, self.real).kthvalue(neighbor, 1).values for part in features.split(500)]
        return torch.cat(parts)
