"""Losses, kappas, labels and weights that are not finite: what it is, since when, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..processes.checkpoints import resume_hint
from ..processes.decisions import NonFiniteFlatnessError, StoppedWithTheOthersError


def explain_value(name: str, value: float, step: int, strength: float) -> str:
    """Return the message about a loss or a kappa that is not finite.

    Args:
        name: what it is.
        value: NaN or infinity.
        step: number of optimizer steps so far.
        strength: lambda.

    Examples:
        >>> explain_value("the loss", float("nan"), 0, 0.1)
        'the loss is nan at step 0, before the first optimizer step. Look for NaN in ...'
    """
    found = f"{name} is {value} at step {step}"
    if step == 0:
        return (
            f"{found}, before the first optimizer step. Look for NaN in the inputs, the labels and the "
            "weights of the model, or use a wider precision, bf16 or float32."
        )
    return f"{found}: {_cause_and_remedy(strength)}"


def explain_labels(step: int) -> str:
    """Return the message about labels that are not finite.

    Args:
        step: number of optimizer steps so far.
    """
    return (
        f"a label at step {step} is NaN or infinite: correct the labels of the training data, or leave the items out."
    )


def sum_of_labels(inputs: Any, names: Sequence[str]) -> Tensor | None:
    """Return a number that is finite if all floating-point labels of a batch are; None without such labels."""
    labels = [inputs.get(name) for name in names] if isinstance(inputs, Mapping) else []
    sums = [y.detach().sum() for y in labels if isinstance(y, Tensor) and y.is_floating_point()]
    return torch.stack(sums).sum() if sums else None


def refuse_to_save(trainer: Any, strength: float) -> None:
    """Refuse to save weights that are not finite, also those of plain training.

    After a step all processes have the same weights. So they decide alike, and need not talk to each other: the main
    process may be the only one that saves.

    Args:
        trainer: the ``Trainer`` that saves its model.
        strength: lambda.

    Raises:
        NonFiniteFlatnessError: names the weight, the step and what to do.
    """
    if trainer.is_fsdp_enabled:  # a process sees a part of each weight only
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    problem = problem_of_weights(model, trainer.state.global_step, strength)
    if problem is not None:
        error = NonFiniteFlatnessError if trainer.is_world_process_zero() else StoppedWithTheOthersError
        raise error(problem + resume_hint(trainer.args.output_dir))


def problem_of_weights(model: nn.Module, step: int, strength: float) -> str | None:
    """Return why weights must not be saved, or None if all are finite.

    A finite kappa can have an infinite gradient.

    Args:
        model: the model to save.
        step: number of optimizer steps so far.
        strength: lambda.

    Returns:
        A message that names the weight, the step and the likely cause, or None.
    """
    names, flags = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            names.append(name)
            flags.append(_whole(weight.detach().isfinite().all()))
    # One read for all weights, because the host waits for the device at each.
    is_finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist() if flags else []
    if all(is_finite):
        return None
    name = names[is_finite.index(False)]
    return f"'{name}' is not finite after step {step}, so it is not saved: {_cause_and_remedy(strength)}"


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is sharded over processes as a whole one."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _cause_and_remedy(strength: float) -> str:
    others = "half precision overflowed, or the data contain NaN"
    if strength == 0:
        return f"the training diverged, {others}: lower the learning rate, or correct the data."
    return (
        f"the training diverged (learning rate or fam_lambda={strength:g} too large), {others}: lower the learning "
        "rate or fam_lambda, add fam_warmup_steps, or correct the data."
    )
