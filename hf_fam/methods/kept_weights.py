"""Weights that a method keeps beside those in training, in memory and in checkpoints, and puts in at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from .base import Method, put_in_front


class KeptWeights(TrainerCallback):
    """Keeps weights by their names; a subclass updates `weights` during the training.

    Attributes:
        file: name of the file in a checkpoint.
        folder: the checkpoint that the training goes on from; None: from the beginning.
        weights: what is kept.
    """

    file: ClassVar[str]

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.weights: dict[str, Tensor] = {}

    def of_model(self, model: Any) -> dict[str, Tensor]:
        """Return the model's own tensors that are kept, by name."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take the weights of the checkpoint, or those of the model."""
        file = None if self.folder is None else self.folder / self.file
        own = self.of_model(model)
        if file is not None and file.is_file():
            saved = load_file(file)
            self.weights = {name: saved.pop(name).to(tensor.device) for name, tensor in own.items()} | saved
        else:
            self.weights = {name: tensor.detach().clone() for name, tensor in own.items()}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the weights into the checkpoint."""
        folder = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, folder / self.file)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the weights into the model."""
        with torch.no_grad():
            for name, tensor in self.of_model(model).items():
                tensor.copy_(self.weights[name])


class KeepingTrainer(Trainer):
    """A Trainer whose trained model has the weights that a callback keeps."""

    def start_keeping(self, kept: KeptWeights) -> None:
        """Add the callback, before the training."""
        self._kept = kept
        self.add_callback(kept)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a resumed training goes on with the weights of the checkpoint."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(str(self.args.output_dir))
        self._kept.folder = Path(folder) if folder else None
        return super().train(resume_from_checkpoint, *args, **kwargs)


def keep(method: Method, trainer: Any, kept: KeptWeights) -> None:
    """Let a Trainer end with the weights that a callback keeps.

    Raises:
        ValueError: the best checkpoint would replace them, or the weights are spread over processes.
    """
    if trainer.args.load_best_model_at_end:
        raise ValueError(f"method={method.name!r}: load_best_model_at_end would replace the weights; turn it off.")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(f"method={method.name!r} works in one process and with DistributedDataParallel only.")
    put_in_front(trainer, KeepingTrainer)
    trainer.start_keeping(kept)
