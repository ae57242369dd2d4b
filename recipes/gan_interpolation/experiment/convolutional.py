"""A convolutional variational autoencoder that is trained against a discriminator, so that its images are sharp."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .networks import Generator, trunk
from .vae import KL_WEIGHT, LATENT, Autoencoder, batches, step

ADVERSARIAL, FEATURES = 4.0, 40.0


class Discriminator(nn.Module):
    """From images to 128 features, and to one number that is large for real images; spectrally normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk(16, normalized=False)
        self.value = nn.Linear(128, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.features(images)
        return rows, self.value(rows)[:, 0]


def train_convolutional_vae(images: Tensor, epochs: int, seed: int) -> Autoencoder:
    """The loss of `train_vae`, and the hinge loss of a discriminator and the squared error of its features.

    The discriminator tells real images from reconstructions and from images of random codes (Larsen et al.,
    Autoencoding beyond pixels using a learned similarity metric, ICML 2016).
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    encoder = nn.Sequential(*trunk(16, normalized=True), nn.Linear(128, 2 * LATENT))
    decoder, discriminator = Generator(LATENT, 64), Discriminator()
    of_vae = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3, (0.5, 0.9))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), 1e-3, (0.5, 0.9))
    for index in batches(len(images), epochs, of_vae, random):
        of_discriminator.param_groups[0]["lr"] = of_vae.param_groups[0]["lr"]
        real = images[index]
        mean, log_variance = encoder(real).chunk(2, 1)
        codes = mean + torch.randn(mean.shape, generator=random) * (log_variance / 2).exp()
        made = decoder(torch.cat([codes, torch.randn(codes.shape, generator=random)]))
        values = discriminator(torch.cat([real, made.detach()]))[1]
        step(of_discriminator, (1 - values[: len(real)]).relu().mean() + (1 + values[len(real) :]).relu().mean())
        with torch.no_grad():
            wanted, _ = discriminator(real)
        rows, values = discriminator(made)
        error = (made[: len(real)] - real).square().flatten(1).sum(1) / 4
        error = error + FEATURES * (rows[: len(real)] - wanted).square().sum(1)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        step(of_vae, (error + KL_WEIGHT * divergence).mean() - ADVERSARIAL * values.mean())
    return Autoencoder(encoder.eval(), decoder.eval())
