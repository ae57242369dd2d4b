"""Where the Trainer's loop lets the generator and the pictures in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from .trainer import WGANTrainer


class AfterCriticStep(TrainerCallback):
    """The moments at which the Trainer's loop lets the generator and the pictures in."""

    def __init__(self, trainer: WGANTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing of an earlier training is logged."""
        self._trainer._begin_training()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The critic has been stepped, its gradients are still there."""
        self._trainer._after_critic_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A picture now and then, and at the end."""
        if args.sample_steps and (state.global_step % args.sample_steps == 0 or state.global_step == state.max_steps):
            self._trainer.save_samples()
