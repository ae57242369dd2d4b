"""Generator and critic as the one module that a Trainer holds."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .penalty import gradient_norms, one_value_per_sample


class GenerativeNetworks(nn.Module):
    """A generator, a critic, and optionally a moving average of the generator.

    Its forward pass is that of a critic step or of a generator step, so that wrappers of the module (autocast,
    DistributedDataParallel) act on both.

    Args:
        generator: from latent codes (n, latent_size) to samples; a conditional one also takes labels (n,).
        critic: from samples to one number each; a conditional one also takes labels.
        averaged: whether to keep a moving average of the generator's weights.
    """

    # The Trainer's model card reads this attribute of every model.
    config: Any = None

    def __init__(self, generator: nn.Module, critic: nn.Module, averaged: bool = False) -> None:
        super().__init__()
        self.generator = generator
        self.critic = critic
        self.ema_generator = copy.deepcopy(generator).requires_grad_(False) if averaged else None

    @property
    def sampling_generator(self) -> nn.Module:
        """Return the generator to take samples from.

        It is the moving average if there is one.
        """
        return self.generator if self.ema_generator is None else self.ema_generator

    def forward(
        self,
        real: Tensor | None = None,
        generated: Tensor | None = None,
        points: Tensor | None = None,
        latents: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the forward pass of a critic step or of a generator step.

        Args:
            real: of shape (n, ...); for a critic step.
            generated: of the same shape.
            points: points at which to compute the critic's gradient, or None. There may be several per sample, as
                ``LocalPoints`` around both kinds draws them, one batch behind the other.
            latents: for a generator step, which needs no samples.
            labels: of shape (n,), of real and generated samples and of the points; None for networks without labels.

        Returns:
            ``estimate``, mean f(real) - mean f(generated), and ``norms`` of the gradients at the points; or
            ``generator_loss``, -mean f(generated).
        """
        if latents is not None:
            return {"generator_loss": -self._mean_value(samples_of(call(self.generator, latents, labels)), labels)}
        assert real is not None and generated is not None
        outputs = {"estimate": self._mean_value(real, labels) - self._mean_value(generated, labels)}
        if points is not None:
            outputs["norms"] = gradient_norms(self.critic, points, labels=labels_of_points(labels, points))
        return outputs

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the generator by 1 - decay.

        Counters and other buffers are copied.
        """
        assert self.ema_generator is not None
        averages, current = list(self.ema_generator.parameters()), list(self.generator.parameters())
        get_ema_multi_avg_fn(decay)(averages, current, 0)
        for copied, own in zip(self.ema_generator.buffers(), self.generator.buffers(), strict=True):
            copied.copy_(own)

    def _mean_value(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        values = one_value_per_sample(call(self.critic, samples, labels), len(samples), "critic")
        # Under autocast, the values are in half precision. Their mean is computed in float32.
        return values.to(torch.promote_types(values.dtype, torch.float32)).mean()


def call(network: nn.Module, inputs: Tensor, labels: Tensor | None) -> Any:
    """Return the output of a network, which takes labels if there are any."""
    return network(inputs) if labels is None else network(inputs, labels)


def labels_of_points(labels: Tensor | None, points: Tensor) -> Tensor | None:
    """Return the label of the real sample that each point belongs to."""
    return None if labels is None else labels.repeat(len(points) // len(labels))


def samples_of(output: object) -> Tensor:
    """Return the tensor of samples in a generator's output.

    It is the output itself, or its ``sample`` (diffusers).

    Raises:
        ValueError: the output contains no tensor of samples.
    """
    samples = getattr(output, "sample", output)
    if not isinstance(samples, Tensor):
        raise ValueError(
            f"the generator returned a {type(output).__name__}: it must return a tensor of samples, or an object with "
            "the tensor as `sample`."
        )
    return samples


def weight_dtype(network: nn.Module) -> torch.dtype:
    """Return the dtype of a network's weights."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


@contextlib.contextmanager
def without_gradients_of(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through a module, but not into its parameters."""
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
    """Disable gradients and put a module in evaluation mode.

    Afterwards, every submodule has its own mode again.
    """
    training = [m for m in module.modules() if m.training]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True
