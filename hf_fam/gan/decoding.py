"""From latent codes to samples, scores and features, by whatever the user gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .penalty import one_value_a_sample


class Decoder:
    """Latent codes to samples, features and scores, in chunks."""

    def __init__(self, generator: Any, scorer: Any, features: Any, chunk_size: int | None) -> None:
        self.generator, self.scorer, self.features = generator, scorer, features
        self.chunk_size = chunk_size

    def samples(self, z: Tensor) -> Tensor:
        """What the generator makes of latent codes (n, ...)."""
        made = self.generator(z)
        made = made if isinstance(made, Tensor) else getattr(made, "sample", made)
        if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != len(z) or not made.is_floating_point():
            given = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"the generator gave {given} for {len(z)} latent codes: it has to give floating-point samples of shape "
                f"({len(z)}, ...)."
            )
        return made

    def scores(self, samples: Tensor) -> Tensor:
        """One number a sample, in float32 or wider."""
        scores = one_value_a_sample(self.scorer(samples), len(samples), "scorer")
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def measured(self, z: Tensor, scored: bool) -> tuple[Tensor, ...]:
        """What an energy looks at: samples or their features, and scores."""
        samples = self.samples(z)
        looked_at = samples if self.features is None else self.features(samples)
        if not isinstance(looked_at, Tensor) or len(looked_at) != len(z) or looked_at.ndim < 2:
            raise ValueError(f"features has to give a tensor of shape ({len(z)}, ...) for {len(z)} samples.")
        return (looked_at, self.scores(samples)) if scored else (looked_at,)

    def shown(self, z: Tensor) -> tuple[Tensor, ...]:
        """What a result holds: samples, and scores where there is a scorer."""
        samples = self.samples(z)
        return (samples,) if self.scorer is None else (samples, self.scores(samples))

    def chunked(
        self, function: Callable[..., tuple[Tensor, ...]], z: Tensor, *more: Any, at_most: int | None = None
    ) -> list[Tensor]:
        """A function of all rows of z, a chunk at a time; activations of a chunk are recomputed for its gradient."""
        size = self.chunk_size or at_most
        chunks = [z] if size is None else z.split(size)
        again = z.requires_grad and len(chunks) > 1
        parts = [
            checkpoint(function, chunk, *more, use_reentrant=False) if again else function(chunk, *more)
            for chunk in chunks
        ]
        return [torch.cat(part) for part in zip(*parts, strict=True)]


@contextlib.contextmanager
def evaluating(*functions: Any) -> Iterator[None]:
    """Modules, also those whose method is given, in evaluation mode."""
    owners = [f if isinstance(f, nn.Module) else getattr(f, "__self__", None) for f in functions]
    training = [m for owner in owners if isinstance(owner, nn.Module) for m in owner.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
