"""Checkpoints of models whose weights have other names in files."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..._compat import WeightLoadingHooks


class RenamedWeightsMixin(WeightLoadingHooks):
    """A base class, to stand in front of a `Trainer`, that loads a checkpoint as `from_pretrained` does.

    The Trainer of transformers 5.23 looks the weights of a file up by their names in the file. If the model has other
    names for them (ViT, many vision-language models), it warns and keeps the initial weights (transformers issue
    43701).
    """

    def after_loading_weights(self, model: Any, folder: str) -> None:
        """Load the weights of a checkpoint again, under the names of the model."""
        if isinstance(model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            saved = type(model).from_pretrained(folder, config=model.config, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())
