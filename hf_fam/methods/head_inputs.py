"""Methods that change the inputs of the classification head during training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from ..layer.finding import HEAD, resolve_layer
from .base import Method, MustAct


class HeadInputs(Method):
    """A method that changes what enters the layer into the logits, at random, during training."""

    @abstractmethod
    def change(self, features: Tensor) -> Tensor:
        """Return what enters the head instead of its features, in the same shape."""

    def apply(self, trainer: Any) -> None:
        """Add a callback that changes the head's inputs from the beginning to the end of the training."""
        _, head = resolve_layer(trainer.model, HEAD)
        changed: list[bool] = []

        def hook(module: nn.Module, args: Any) -> Any:
            if not module.training:
                return None
            changed[:] = [True]
            return (self.change(args[0]), *args[1:])

        trainer.add_callback(HookCallback(head, hook))
        trainer.add_callback(MustAct(self, lambda: bool(changed)))


class HookCallback(TrainerCallback):
    """A forward pre-hook that is on a module only while it is trained.

    Args:
        module: the module.
        hook: called as torch calls a forward pre-hook.
        **options: arguments of ``register_forward_pre_hook``.
    """

    def __init__(self, module: nn.Module, hook: Any, **options: Any) -> None:
        self._module, self._hook, self._options = module, hook, options
        self._handle: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the hook."""
        self._remove()
        self._handle = self._module.register_forward_pre_hook(self._hook, **self._options)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hook."""
        self._remove()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
