"""Undocumented attributes of transformers, accelerate, TRL, sentence-transformers and DeepSpeed.

hf_fam uses these names only in this file. Each entry lists the versions that have them.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import Trainer

    _Host = Trainer
else:
    _Host = object

# Attributes in which compute_loss collects values for the log: TRL 1.16 (`_metrics`, `_total_train_tokens`),
# sentence-transformers 5.2 to 6.2 (`accum_loss_components`).
_LOGGED_IN_COMPUTE_LOSS = ("_metrics", "_total_train_tokens", "accum_loss_components")


class CheckpointHooks(_Host):
    """Base class in front of a ``Trainer``, with hooks for saving.

    ``Trainer._save_checkpoint``, ``Trainer._save`` and the argument ``_internal_call`` of ``Trainer.save_model``:
    transformers 5.15 to 5.23.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not, which trains as this Trainer would."""
        _repair_copies()
        return vars(self)

    def before_saving(self) -> None:
        """Raise an error to refuse to save the model, in a checkpoint or not.

        A process may be the only one that calls this.
        """

    def before_checkpoint(self) -> None:
        """Raise an error to refuse a checkpoint.

        All processes call this.
        """

    def state_to_save(self) -> dict[str, Any] | None:
        """Return the weights to save; None for the model's own state dict."""
        return None

    def after_saving(self, folder: Path) -> None:
        """Write more files into the folder of a saved model."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the Trainer does, unless `before_saving` refuses."""
        self.before_saving()
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.before_checkpoint()
        super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, self.state_to_save() if state_dict is None else state_dict)
        if self.args.should_save:
            self.after_saving(Path(output_dir or str(self.args.output_dir)))


class WeightLoadingHooks(_Host):
    """Base class in front of a ``Trainer``, with a hook for loading a checkpoint.

    ``Trainer._load_from_checkpoint`` and ``Trainer._load_best_model``: transformers 5.15 to 5.23.
    """

    def after_loading_weights(self, model: Any, folder: str) -> None:
        """Complete the weights that a model loaded from a folder."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.after_loading_weights(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.after_loading_weights(self.model, str(self.state.best_model_checkpoint))


class GradientNormHook(_Host):
    """Base class in front of a ``Trainer``, which may skip the norm of unclipped gradients.

    ``Trainer._get_grad_norm``: transformers 5.15 to 5.23.
    """

    def needs_gradient_norm(self) -> bool:
        """Return True if the norm of this step is logged."""
        return True

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and not self.needs_gradient_norm():
            return None
        return super()._get_grad_norm(model, grad_norm=grad_norm)


def prepared_inputs(trainer: Any, inputs: Any) -> Any:
    """Return a batch on the trainer's device.

    ``Trainer._prepare_inputs``: transformers 5.15 to 5.23.
    """
    return trainer._prepare_inputs(inputs)


def train_batch_size(trainer: Any) -> int:
    """Return the number of items of one micro-batch on one device.

    ``auto_find_batch_size`` may have changed it.

    ``Trainer._train_batch_size``: transformers 5.15 to 5.23.
    """
    size: int = trainer._train_batch_size
    return size


def clip_gradients(trainer: Any, model: nn.Module) -> Any:
    """Clip gradients as the Trainer does.

    ``Trainer._clip_grad_norm``: transformers 5.15 to 5.23.
    """
    return trainer._clip_grad_norm(model)


def mark_scheduler_as_created(trainer: Any) -> None:
    """Make the Trainer create a new schedule for the next training.

    ``Trainer._created_lr_scheduler``: transformers 5.15 to 5.23.
    """
    trainer._created_lr_scheduler = True


def step_directly(optimizer: Any) -> None:
    """Let accelerate's wrapper of an optimizer call that optimizer's step at once.

    At each step, the wrapper searches the disk for a package twice, which takes longer than a small network's step.
    Nothing changes where the wrapper does more: with a gradient scaler, on TPUs, and for optimizers other than torch's.

    Args:
        optimizer: after ``Accelerator.prepare``, and before a schedule replaces its step.

    ``AcceleratedOptimizer.scaler``, ``.accelerator_state`` and ``.gradient_state``: accelerate 1.3 to 1.15.
    """
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType

    if (
        type(optimizer) is AcceleratedOptimizer
        and optimizer.scaler is None
        and optimizer.accelerator_state.distributed_type != DistributedType.XLA
        and type(optimizer.optimizer).__module__.startswith("torch.optim.")
    ):
        optimizer.step = types.MethodType(_direct_step, optimizer)


def _direct_step(wrapper: Any, closure: Any = None) -> None:
    if wrapper.gradient_state.sync_gradients:
        wrapper.optimizer.step(closure)


def _repair_copies() -> None:
    """Let copies and pickles contain accelerate's ``GradientState`` and ``AcceleratedOptimizer`` as they should.

    ``GradientState`` is one object for a process. After a training it has weak references to dataloaders, which no
    pickle can contain. ``AcceleratedOptimizer.step`` is replaced by a schedule, with a function that no pickle can
    contain and that steps the original optimizer also in a copy.

    ``GradientState.plugin_kwargs`` and ``AcceleratedOptimizer.__getstate__``: accelerate 1.3 to 1.15.
    """
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.state import GradientState

    copyreg.pickle(GradientState, lambda state: (_gradient_state, (dict(state.plugin_kwargs),)))
    copyreg.pickle(AcceleratedOptimizer, _reduce_optimizer)


def _gradient_state(plugin_kwargs: dict[str, Any]) -> Any:
    from accelerate.state import GradientState
    from accelerate.utils import GradientAccumulationPlugin

    return GradientState(GradientAccumulationPlugin(**plugin_kwargs))


def _reduce_optimizer(optimizer: Any) -> tuple[Any, ...]:
    state = {name: value for name, value in optimizer.__getstate__().items() if name != "step"}
    return object.__new__, (type(optimizer),), state


def loss_is_scaled(trainer: Any) -> bool | None:
    """Return the Trainer's ``loss_is_scaled_for_ga``, or None if it has none.

    It decides whether losses are divided by the accumulation steps. ``Trainer.loss_is_scaled_for_ga``: transformers
    5.23.
    """
    is_scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)
    return is_scaled


def model_from_config(model_class: Any, config: Any) -> nn.Module:
    """Build a model without weights.

    ``PreTrainedModel._from_config``: transformers 5.15 to 5.23.
    """
    model: nn.Module = model_class._from_config(config)
    return model


def forget_source(config: Any) -> None:
    """Remove the name of the source model from a configuration.

    ``PreTrainedConfig._name_or_path``: transformers 5.15 to 5.23.
    """
    config._name_or_path = ""


def serves_config(auto_class: Any, config: Any) -> bool:
    """Return True if an ``AutoModelFor...`` class has a model for a configuration.

    ``_BaseAutoModelClass._model_mapping``: transformers 5.15 to 5.23.
    """
    return type(config) in auto_class._model_mapping


@contextlib.contextmanager
def forget_forward_pass(trainer: Any) -> Iterator[None]:
    """Discard what a forward pass without a backward pass leaves behind.

    These are the values that compute_loss collects for the log, and the order of the modules. From that order DeepSpeed
    ZeRO stage 3 plans when it gathers weights, for the whole training.

    ``DeepSpeedZeroOptimizer_Stage3.parameter_offload`` and ``PartitionedParameterCoordinator._invalidate_trace``:
    deepspeed 0.19.
    """
    values = {name: copy.deepcopy(getattr(trainer, name)) for name in _LOGGED_IN_COMPUTE_LOSS if hasattr(trainer, name)}
    try:
        yield
    finally:
        for name, value in values.items():
            setattr(trainer, name, value)
        optimizer = getattr(getattr(trainer, "model_wrapped", None), "optimizer", None)
        offload = getattr(optimizer, "parameter_offload", None)
        if offload is not None and not offload.get_param_coordinator().is_invalid_trace():
            offload.get_param_coordinator()._invalidate_trace()


@contextlib.contextmanager
def without_patched_forward(modules: list[Any]) -> Iterator[None]:
    """Call modules without the autocast that accelerate adds to their ``forward``.

    ``module._original_forward``: accelerate 1.3 to 1.15.
    """
    patched = [module for module in modules if "_original_forward" in vars(module)]
    forwards = [module.forward for module in patched]
    try:
        for module in patched:
            module.forward = module._original_forward
        yield
    finally:
        for module, forward in zip(patched, forwards, strict=True):
            module.forward = forward
