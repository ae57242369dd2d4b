"""The GAN whose latent space is walked through, and the judge that has never seen it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_fam.gan import LinePoints, gradient_norms, gradient_penalty

from .networks import Critic, Generator, Judge, codes

N_CRITIC, BATCH, STRENGTH = 3, 64, 10.0


@dataclass(frozen=True)
class Gan:
    """A generator, its critic, and what the critic said at the end.

    Attributes:
        generator: trained.
        critic: trained with it.
        estimate: of the Wasserstein distance, without the penalty, mean over the last steps.
        violation: the largest slope of the critic on the lines minus 1, maximum over the last steps.
    """

    generator: Generator
    critic: Critic
    estimate: float
    violation: float


def train_gan(images: Tensor, steps: int, seed: int) -> Gan:
    """WGAN-LP: N_CRITIC steps of the critic for each of the generator's, Adam 2e-4 (0.5, 0.9)."""
    torch.manual_seed(seed)
    generator, critic = Generator(), Critic()
    of_generator, of_critic = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.9)) for net in (generator, critic))
    random = torch.Generator().manual_seed(seed)
    last: list[tuple[float, float]] = []
    for step in range(steps):
        for _ in range(N_CRITIC):
            real = images[torch.randint(len(images), (BATCH,), generator=random)]
            fake = generator(codes(BATCH, random)).detach()
            points = LinePoints()(real, fake, generator=random)
            estimate = critic(real).mean() - critic(fake).mean()
            of_critic.zero_grad()
            (STRENGTH * gradient_penalty(critic, points) - estimate).backward()
            of_critic.step()
        if steps - step <= 20:
            with torch.no_grad():
                last.append((float(estimate), float(gradient_norms(critic, points).max()) - 1))
        of_generator.zero_grad()
        (-critic(generator(codes(BATCH, random))).mean()).backward()
        of_generator.step()
        if step % 100 == 0:
            print(f"seed {seed}: generator step {step}, estimate {estimate.item():.2f}", flush=True)
    estimates, violations = zip(*last, strict=True)
    return Gan(generator.eval(), critic.eval(), sum(estimates) / len(estimates), max(violations))


def train_judge(images: Tensor, labels: Tensor, epochs: int, seed: int, batch: int = 128) -> Judge:
    """A classifier of the real training images: AdamW, 1e-3."""
    torch.manual_seed(1000 + seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-3)
    random = torch.Generator().manual_seed(1000 + seed)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=random).split(batch):
            loss = torch.nn.functional.cross_entropy(judge(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return judge.eval()
