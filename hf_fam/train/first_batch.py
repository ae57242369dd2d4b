"""Check on the first batch how a model scales its loss, without side effects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import forget_forward_pass, loss_is_scaled, prepared_inputs
from ..layer.model_state import preserve_state
from ..processes.decisions import max_over_processes

# Relative rounding error of a loss in half precision. A loss that uses num_items_in_batch is halved instead.
_ROUNDING = 0.02

# The largest verdict of all processes counts.
_UNKNOWN, _IGNORES, _USES = range(3)


def copy_of_inputs(inputs: Any) -> Any:
    """Return a copy of a batch, because compute_loss may remove items from it."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def correct_loss_scaling(
    trainer: Any,
    compute_loss: Callable[..., Tensor],
    model: nn.Module,
    inputs: dict[str, Any],
    num_items_in_batch: Any,
) -> bool:
    """Make the Trainer average losses that do not depend on ``num_items_in_batch``.

    Many classification models accept the argument and ignore it, but the Trainer assumes that they divide by it. Their
    gradients are then multiplied by the accumulation steps and processes (transformers issue 47688).

    Args:
        trainer: the Trainer, whose two switches for this are set.
        compute_loss: the Trainer's own function, called as ``compute_loss(inputs, num_items_in_batch=...)``.
        model: the model of the training loop.
        inputs: the first batch.
        num_items_in_batch: the number that the Trainer passes for this batch.

    Returns:
        True if a batch of any process showed the scaling. A loss of zero or NaN, as without labels, does not.
    """
    factor = trainer.args.gradient_accumulation_steps * trainer.args.world_size
    if factor == 1 or num_items_in_batch is None or loss_is_scaled(trainer) is not None:
        return True
    inputs = prepared_inputs(trainer, inputs)
    losses = []
    for multiple in (1, 2):
        # Both start from the same random state, so that dropout and mixup are the same.
        with preserve_state(model), forget_forward_pass(trainer), torch.no_grad():
            losses.append(
                compute_loss(copy_of_inputs(inputs), num_items_in_batch=num_items_in_batch * multiple).float()
            )
    if not all(loss.isfinite() and loss != 0 for loss in losses):
        verdict = _UNKNOWN
    else:
        verdict = _IGNORES if torch.allclose(losses[0], losses[1], rtol=_ROUNDING, atol=0.0) else _USES
    # All processes need the same scale, even if the batch of one has no labels.
    verdict = max_over_processes(verdict, trainer.accelerator)
    if verdict == _IGNORES:
        _average_micro_batches(trainer, _class_name(trainer.accelerator.unwrap_model(model)), factor)
    return verdict != _UNKNOWN


def _average_micro_batches(trainer: Any, name: str, factor: int) -> None:
    """Make the Trainer treat the losses as means; the main process warns."""
    is_main_process = trainer.accelerator.is_main_process
    if trainer.compute_loss_func is not None:
        _warn(
            is_main_process,
            f"compute_loss_func ignores num_items_in_batch, so gradients are multiplied by {factor} (accumulation "
            "steps times processes): divide the summed loss by num_items_in_batch in compute_loss_func.",
        )
        return
    _warn(
        is_main_process,
        f"{name} ignores num_items_in_batch, so the stock Trainer would multiply its gradients by {factor} "
        "(accumulation steps times processes; transformers issue 47688). hf_fam divides this factor out. Set "
        'fam_loss_scaling="stock" to keep it.',
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.loss_is_scaled_for_ga = False


def _warn(is_main_process: bool, message: str) -> None:
    if is_main_process:
        warnings.warn(message, stacklevel=4)


def _class_name(model: nn.Module) -> str:
    """Return the name of the model's class; ``fully_shard`` puts "FSDP" in front of it."""
    return type(model).__name__.removeprefix("FSDP")
