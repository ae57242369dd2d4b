"""The events of the Trainer's loop at which the generator steps and pictures are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class AfterCriticStep(TrainerCallback):
    """Steps the generator and saves pictures after steps of the critic.

    Args:
        begin_training: called before the first step, to clear the logs of an earlier training.
        step_generator: called after each step of the critic, before its gradients are cleared.
        save_samples: called after the steps at which a picture is due.
    """

    def __init__(
        self,
        begin_training: Callable[[], None],
        step_generator: Callable[[], None],
        save_samples: Callable[[], object],
    ) -> None:
        self.begin_training, self.step_generator, self.save_samples = begin_training, step_generator, save_samples

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a training."""
        self.begin_training()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step the generator."""
        self.step_generator()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save a picture every ``sample_steps`` steps, and at the end."""
        if args.sample_steps and (state.global_step % args.sample_steps == 0 or state.global_step == state.max_steps):
            self.save_samples()
