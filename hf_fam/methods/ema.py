"""Exponential moving average of the weights, by torch.optim.swa_utils."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from .base import Method, put_in_front, register, round_to

# The file of a checkpoint with the averages.
AVERAGES = "moving_average.safetensors"


@register
class MovingAverage(Method):
    """The model at the end is an exponential moving average of the weights of all steps.

    Evaluations during the training are those of the weights themselves.
    """

    name = "ema"
    field = "ema_decay"
    description = "exponential moving average of the weights, torch.optim.swa_utils (Polyak and Juditsky 1992)"
    default = 0.99
    limits = (0.0, 1.0)

    def strengths(self, count: int) -> list[float]:
        """Return decays whose distances from 1 are a factor apart."""
        first = -((count - 1) // 2)
        distances = [(1 - self.value) * self.step**k for k in range(first, first + count)]
        return [round_to(max(1 - distance, 0.1)) for distance in distances]

    def apply(self, trainer: Any) -> None:
        """Add the average.

        Raises:
            ValueError: the best checkpoint would replace the average, or the weights are spread over processes.
        """
        if trainer.args.load_best_model_at_end:
            raise ValueError(f"method={self.name!r}: load_best_model_at_end would replace the average; turn it off.")
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ValueError(f"method={self.name!r} works in one process and with DistributedDataParallel only.")
        put_in_front(trainer, AveragingTrainer)
        trainer.start_averaging(self.value)


class AveragingTrainer(Trainer):
    """A Trainer whose trained model is the moving average of its weights."""

    def start_averaging(self, decay: float) -> None:
        """Turn the average on, before the training."""
        self._averaging = _Averaging(decay)
        self.add_callback(self._averaging)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; a resumed training goes on with the average of the checkpoint."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(str(self.args.output_dir))
        self._averaging.folder = Path(folder) if folder else None
        return super().train(resume_from_checkpoint, *args, **kwargs)


class _Averaging(TrainerCallback):
    def __init__(self, decay: float) -> None:
        self.folder: Path | None = None
        self._update = get_ema_multi_avg_fn(decay)
        self._averages: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        file = None if self.folder is None else self.folder / AVERAGES
        if file is not None and file.is_file():
            saved = load_file(file)
            self._averages = {name: saved[name].to(p.device) for name, p in _trained(model).items()}
        else:
            self._averages = {name: p.detach().clone() for name, p in _trained(model).items()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            self._update([*self._averages.values()], [p.detach() for p in _trained(model).values()], 0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            save_file({name: average.contiguous() for name, average in self._averages.items()}, folder / AVERAGES)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(self._averages[name])


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
