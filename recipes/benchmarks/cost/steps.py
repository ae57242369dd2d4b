"""One training step at a time, by the Trainer's own parts."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_fam import FAMTrainer, FAMTrainingArguments


class Steps:
    """The inner loop of ``Trainer.train``, one call a step.

    Args:
        model: what to train.
        fam: fam_* arguments; None for plain training.
        sam: train with SAM.
        optimizer: to use instead of a new AdamW; several trainings of one model can share it.
        given: further arguments of the Trainer, such as its precision.
    """

    def __init__(
        self,
        model: nn.Module,
        fam: dict[str, Any] | None = None,
        sam: bool = False,
        optimizer: Any = None,
        given: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._folder = tempfile.TemporaryDirectory()
        arguments = {
            "output_dir": self._folder.name,
            "learning_rate": 1e-5,
            "max_steps": 1_000_000,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **(given or {}),
            **(fam or {}),
        }
        args = (TrainingArguments if fam is None else FAMTrainingArguments)(**arguments)
        self.trainer = (Trainer if fam is None else FAMTrainer)(model=model, args=args)
        self._sam = sam
        if sam:
            from pytorch_optimizer import SAM

            self.trainer.optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=args.learning_rate)
        elif optimizer is not None:
            self.trainer.optimizer = optimizer
        self.trainer.create_optimizer_and_scheduler(args.max_steps)
        self.trainer.state.max_steps = args.max_steps
        if args.world_size > 1:
            self.trainer.model_wrapped = self.trainer.accelerator.prepare(model)
        if not sam:  # accelerate passes a closure on, but SAM keeps its state elsewhere
            self.trainer.optimizer = self.trainer.accelerator.prepare(self.trainer.optimizer)

    def __call__(self, batch: dict[str, Tensor]) -> None:
        trainer = self.trainer
        args, state, control = trainer.args, trainer.state, trainer.control
        trainer.current_gradient_accumulation_steps = 1
        (batch,), num_items = trainer.get_batch_samples(iter([batch]), 1, args.device)
        trainer.callback_handler.on_step_begin(args, state, control)
        self.gradients(batch, num_items)
        trainer.callback_handler.on_pre_optimizer_step(args, state, control)
        if self._sam:
            trainer.optimizer.step(lambda: self.gradients(batch, num_items))
        else:
            trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()
        state.global_step += 1
        trainer.callback_handler.on_step_end(args, state, control)

    def gradients(self, batch: dict[str, Tensor], num_items: Any) -> None:
        """Compute and clip the gradients of a batch."""
        self.model.zero_grad()
        self.trainer.training_step(self.trainer.model_wrapped, batch, num_items)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
