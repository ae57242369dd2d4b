"""A variational autoencoder of FashionMNIST, and networks that judge or guide paths between its codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

SIZE, WIDTH, LATENT, BATCH = 28 * 28, 256, 16, 128
KL_WEIGHT = 0.2


@dataclass(frozen=True)
class Autoencoder:
    """A trained variational autoencoder.

    Attributes:
        encoder: from images to mean and log-variance of the codes, (n, 2 LATENT).
        decoder: from codes (n, LATENT) to images.
    """

    encoder: nn.Module
    decoder: nn.Module

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Mean codes of images."""
        return self.encoder(images)[:, :LATENT]


def perceptron(*sizes: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return layers[:-1]


def decoder(codes: int) -> nn.Sequential:
    return nn.Sequential(*perceptron(codes, WIDTH, WIDTH, SIZE), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


def classifier(outputs: int = 10) -> nn.Sequential:
    """Its part without the last layer makes 64 features."""
    return nn.Sequential(nn.Flatten(), *perceptron(SIZE, WIDTH, 64, outputs))


def batches(count: int, epochs: int, optimizer: torch.optim.Optimizer, random: torch.Generator) -> Iterator[Tensor]:
    """Indices of every batch; the learning rate falls linearly to 0 over the epochs."""
    rate = optimizer.param_groups[0]["lr"]
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs)
        yield from torch.randperm(count, generator=random).split(BATCH)


def train_vae(images: Tensor, epochs: int, seed: int) -> Autoencoder:
    """Squared error / 4 plus 0.2 times the KL divergence, Adam 1e-3."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), *perceptron(SIZE, WIDTH, WIDTH, 2 * LATENT))
    decode = decoder(LATENT)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decode.parameters()], 1e-3)
    for index in batches(len(images), epochs, optimizer, random):
        mean, log_variance = encoder(images[index]).chunk(2, 1)
        noise = torch.randn(mean.shape, generator=random)
        error = (decode(mean + noise * (log_variance / 2).exp()) - images[index]).square().flatten(1).sum(1) / 4
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        step(optimizer, (error + KL_WEIGHT * divergence).mean())
    return Autoencoder(encoder.eval(), decode.eval())


def train_classifier(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """Cross-entropy, AdamW 1e-3."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = classifier()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for index in batches(len(images), epochs, optimizer, random):
        step(optimizer, nn.functional.cross_entropy(network(images[index]), labels[index]))
    return network.eval()


def train_autoencoder(images: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """A plain autoencoder with twelve codes, for the judge: mean squared error, Adam 1e-3."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), *perceptron(SIZE, WIDTH, 12), decoder(12))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for index in batches(len(images), epochs, optimizer, random):
        step(optimizer, (network(images[index]) - images[index]).square().mean())
    return network.eval()


def train_discriminator(
    good: Tensor, bad: Tensor, steps: int, seed: int, noise: float = 0.0, network: nn.Module | None = None
) -> nn.Module:
    """The logit of "good", with noise of that size on its inputs: binary cross-entropy, AdamW 1e-3."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = classifier(1) if network is None else network
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    target = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)])
    for _ in range(steps):
        chosen = [part[torch.randint(len(part), (BATCH,), generator=random)] for part in (good, bad)]
        rows = torch.cat(chosen)
        rows = rows + noise * torch.randn(rows.shape, generator=random)
        step(optimizer, nn.functional.binary_cross_entropy_with_logits(network(rows)[:, 0], target))
    return network.eval()


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
