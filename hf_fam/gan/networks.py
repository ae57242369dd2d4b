"""Generator and critic as the one module that a Trainer holds."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .penalty import gradient_norms, one_value_a_sample


class GenerativeNetworks(nn.Module):
    """A generator, a critic, and the moving average of the generator where one is kept.

    Its forward pass is that of a critic step or of a generator step, so that whatever wraps the module (autocast,
    DistributedDataParallel) acts on both.

    Args:
        generator: from latent codes (n, latent_size) to samples.
        critic: from samples to one number each.
        averaged: whether to keep a moving average of the generator's weights.
    """

    # The Trainer's model card asks every model for one.
    config: Any = None

    def __init__(self, generator: nn.Module, critic: nn.Module, averaged: bool = False) -> None:
        super().__init__()
        self.generator = generator
        self.critic = critic
        self.ema_generator = copy.deepcopy(generator).requires_grad_(False) if averaged else None

    @property
    def sampling_generator(self) -> nn.Module:
        """The generator to take samples from: the moving average where there is one."""
        return self.generator if self.ema_generator is None else self.ema_generator

    def forward(
        self,
        real: Tensor | None = None,
        generated: Tensor | None = None,
        points: Tensor | None = None,
        latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One of the two forward passes.

        Args:
            real: of shape (n, ...); for a critic step.
            generated: of the same shape.
            points: where the critic's gradient is wanted, or None.
            latents: for a generator step, which needs nothing else.

        Returns:
            ``estimate``, mean f(real) - mean f(generated), and ``norms`` of the gradients at the points; or
            ``generator_loss``, -mean f(generated).
        """
        if latents is not None:
            return {"generator_loss": -self._mean_value(samples_of(self.generator(latents)))}
        assert real is not None and generated is not None
        found = {"estimate": self._mean_value(real) - self._mean_value(generated)}
        if points is not None:
            found["norms"] = gradient_norms(self.critic, points)
        return found

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average by 1 - decay towards the generator; counters and other buffers are copied."""
        assert self.ema_generator is not None
        pairs = zip(self.ema_generator.parameters(), self.generator.parameters(), strict=True)
        for averaged, current in pairs:
            averaged.lerp_(current, 1 - decay)
        for copied, own in zip(self.ema_generator.buffers(), self.generator.buffers(), strict=True):
            copied.copy_(own)

    def _mean_value(self, samples: Tensor) -> Tensor:
        values = one_value_a_sample(self.critic(samples), len(samples), "critic")
        # Under autocast the values are in half precision; their mean need not be.
        return values.to(torch.promote_types(values.dtype, torch.float32)).mean()


def samples_of(output: object) -> Tensor:
    """The tensor in what a generator returned: itself, or its ``sample`` (diffusers).

    Raises:
        ValueError: there is none.
    """
    samples = getattr(output, "sample", output)
    if not isinstance(samples, Tensor):
        raise ValueError(
            f"the generator gave a {type(output).__name__}: it has to give a tensor of samples, or an object with one "
            "as its `sample`."
        )
    return samples


def floating_type(network: nn.Module) -> torch.dtype:
    """The type of a network's weights."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


@contextlib.contextmanager
def without_gradients_of(module: nn.Module) -> Iterator[None]:
    """Gradients flow through the module, but not into its parameters."""
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """No gradients, and every submodule's own mode as it was afterwards."""
    training = [m for m in module.modules() if m.training]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True
