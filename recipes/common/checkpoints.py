"""Checkpoints of models whose weights have other names in files."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, Trainer


class WholeCheckpoints(Trainer):
    """Loads a checkpoint as ``from_pretrained`` does.

    The Trainer of transformers 5.23 puts a file's weights into the model by their names in the file. Where those are
    not the model's (ViT, many vision-language models), it warns and goes on from the weights that it started with
    (transformers issue 43701).
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_renamed(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_renamed(self.model, self.state.best_model_checkpoint)

    def _load_renamed(self, model: Any, folder: str) -> None:
        if isinstance(model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            saved = type(model).from_pretrained(folder, config=model.config, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())
