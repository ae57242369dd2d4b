"""NEFTune, as the Trainer has it."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Method, register


@register
class NEFTune(Method):
    """Uniform noise on the word embeddings during training."""

    name = "neftune"
    field = "neftune_noise_alpha"
    description = "uniform noise on word embeddings (Jain et al. 2023)"
    default = 5.0
    step = 2.0

    def apply(self, trainer: Any) -> None:
        """Set the size of the noise.

        Raises:
            ValueError: the model has no word embeddings, or they are frozen.
        """
        embeddings = None
        if hasattr(trainer.model, "get_input_embeddings"):
            try:
                embeddings = trainer.model.get_input_embeddings()
            except NotImplementedError:
                embeddings = None
        if not isinstance(embeddings, nn.Embedding):
            raise ValueError(f"method={self.name!r} needs a model with word embeddings.")
        if not any(p.requires_grad for p in embeddings.parameters()):
            raise ValueError(f"method={self.name!r} has no effect on a frozen backbone: its features are stored.")
        trainer.neftune_noise_alpha = self.value
