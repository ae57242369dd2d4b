"""What can only be seen on a first batch, looked at without leaving a trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import averages_micro_batches, prepared_inputs, restore_logged_quantities
from ..layer.model_state import preserve_state
from ..processes.decisions import max_over_processes

# By which a loss may differ from itself in half precision, on devices that add in any order; one that honours the
# number is halved.
_ROUNDING = 0.02

# In the order in which they outweigh each other: a loss that has changed with the number honours it.
_CANNOT_TELL, _IGNORES, _HONOURS = range(3)


def copied(inputs: Any) -> Any:
    """A batch that compute_loss may take items out of (``inputs.pop("labels")``) without loss."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def correct_loss_scaling(
    trainer: Any,
    compute_loss: Callable[..., Tensor],
    model: nn.Module,
    inputs: dict[str, Any],
    num_items_in_batch: Any,
) -> bool:
    """Make the Trainer average micro-batches whose loss does not depend on ``num_items_in_batch``.

    Many classification heads accept the argument and ignore it, while the Trainer takes their loss to be divided by
    it: gradients come out multiplied by accumulation steps and processes (transformers issue 47688).

    Args:
        trainer: the Trainer, whose two switches for this are set.
        compute_loss: the Trainer's own, called as ``compute_loss(inputs, num_items_in_batch=...)``.
        model: the model as the training loop sees it.
        inputs: the first batch.
        num_items_in_batch: what the Trainer passes for it.

    Returns:
        Whether a batch could tell, of this process or another; a loss of zero or NaN (no labels, say) cannot.
    """
    parts = trainer.args.gradient_accumulation_steps * trainer.args.world_size
    if parts == 1 or num_items_in_batch is None or averages_micro_batches(trainer) is not None:
        return True
    inputs = prepared_inputs(trainer, inputs)
    losses = []
    for k in (1, 2):
        # Each from the same random state, so that dropout and mixtures drawn in compute_loss are alike in both.
        with preserve_state(model), restore_logged_quantities(trainer), torch.no_grad():
            losses.append(compute_loss(copied(inputs), num_items_in_batch=num_items_in_batch * k).float())
    if not all(loss.isfinite() and loss != 0 for loss in losses):
        verdict = _CANNOT_TELL
    else:
        verdict = _IGNORES if torch.allclose(losses[0], losses[1], rtol=_ROUNDING, atol=0.0) else _HONOURS
    # A process whose batch has no labels must not go on with another scale than the others.
    verdict = max_over_processes(verdict, trainer.accelerator)
    if verdict == _IGNORES:
        _average(trainer, type(trainer.accelerator.unwrap_model(model)).__name__, parts)
    return verdict != _CANNOT_TELL


def _average(trainer: Any, name: str, parts: int) -> None:
    """Let the Trainer take the losses for means; one process says so."""
    main = trainer.accelerator.is_main_process
    if trainer.compute_loss_func is not None:
        _warn(
            main,
            f"compute_loss_func ignores num_items_in_batch, so gradients are multiplied by {parts} (accumulation steps "
            "times processes): divide the summed loss by num_items_in_batch in compute_loss_func.",
        )
        return
    _warn(
        main,
        f"{name} ignores num_items_in_batch, so the stock Trainer would multiply its gradients by {parts} "
        "(accumulation steps times processes; transformers issue 47688). hf_fam divides that out; "
        'fam_loss_scaling="stock" leaves it.',
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.loss_is_scaled_for_ga = False


def _warn(main: bool, message: str) -> None:
    if main:
        warnings.warn(message, stacklevel=4)
