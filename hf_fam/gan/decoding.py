"""Decode latent codes to samples, scores and features with the user's functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .penalty import one_value_per_sample


class Decoder:
    """Decodes latent codes to samples, features and scores, in chunks."""

    def __init__(self, generator: Any, scorer: Any, features: Any, chunk_size: int | None) -> None:
        self.generator, self.scorer, self.features = generator, scorer, features
        self.chunk_size = chunk_size

    def samples(self, z: Tensor) -> Tensor:
        """Return the generator's samples of latent codes (n, ...)."""
        samples = self.generator(z)
        samples = samples if isinstance(samples, Tensor) else getattr(samples, "sample", samples)
        if (
            not isinstance(samples, Tensor)
            or samples.ndim < 2
            or len(samples) != len(z)
            or not samples.is_floating_point()
        ):
            description = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(
                f"the generator returned {description} for {len(z)} latent codes: it must return floating-point "
                f"samples of shape ({len(z)}, ...)."
            )
        return samples

    def scores(self, samples: Tensor) -> Tensor:
        """Return one number for each sample, in float32 or wider."""
        scores = one_value_per_sample(self.scorer(samples), len(samples), "scorer")
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def energy_inputs(self, z: Tensor, with_scores: bool) -> tuple[Tensor, ...]:
        """Return the inputs of an energy: samples or their features, and scores."""
        samples = self.samples(z)
        outputs = samples if self.features is None else self.features(samples)
        if not isinstance(outputs, Tensor) or len(outputs) != len(z) or outputs.ndim < 2:
            raise ValueError(f"features must return a tensor of shape ({len(z)}, ...) for {len(z)} samples.")
        return (outputs, self.scores(samples)) if with_scores else (outputs,)

    def samples_and_scores(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return samples, and scores if there is a scorer."""
        samples = self.samples(z)
        return (samples,) if self.scorer is None else (samples, self.scores(samples))

    def chunked(
        self, function: Callable[..., tuple[Tensor, ...]], z: Tensor, *arguments: Any, default_size: int | None = None
    ) -> list[Tensor]:
        """Apply a function to all rows of z, a chunk at a time.

        Activations of a chunk are recomputed for its gradient.
        """
        size = self.chunk_size or default_size
        chunks = [z] if size is None else z.split(size)
        recompute = z.requires_grad and len(chunks) > 1
        parts = [
            checkpoint(function, chunk, *arguments, use_reentrant=False) if recompute else function(chunk, *arguments)
            for chunk in chunks
        ]
        return [torch.cat(part) for part in zip(*parts, strict=True)]


def matrix_of(name: str, function: Callable[[Tensor], Any], samples: Tensor) -> Tensor:
    """Return what a function of samples (n, ...) returns, as (n, m), in float32 or wider.

    Args:
        name: name of the function, for the message.
        function: returns a tensor, or an object with ``logits``.
        samples: of shape (n, ...).

    Raises:
        ValueError: it is no tensor of shape (n, m).
    """
    output = function(samples)
    rows = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(samples):
        description = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"{name} returned {description} for {len(samples)} samples: it must return a tensor of shape "
            f"({len(samples)}, m)."
        )
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


@contextlib.contextmanager
def in_evaluation_mode(*functions: Any) -> Iterator[None]:
    """Put modules, and owners of given methods, in evaluation mode."""
    owners = [f if isinstance(f, nn.Module) else getattr(f, "__self__", None) for f in functions]
    training = [m for owner in owners if isinstance(owner, nn.Module) for m in owner.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
