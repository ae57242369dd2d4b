"""Where the Trainer's loop lets the generator and the pictures in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class AfterCriticStep(TrainerCallback):
    """The moments at which the Trainer's loop lets the generator and the pictures in.

    Args:
        begin_training: called before the first step; nothing of an earlier training is logged.
        step_generator: called when the critic has been stepped and its gradients are still there.
        save_samples: called where a picture is due.
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
        """Let the generator step."""
        self.step_generator()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw a picture now and then, and at the end."""
        if args.sample_steps and (state.global_step % args.sample_steps == 0 or state.global_step == state.max_steps):
            self.save_samples()
