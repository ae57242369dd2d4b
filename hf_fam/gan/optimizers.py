"""Critic and generator each with settings and schedule of their own.

Both are groups of one ``torch.optim`` optimizer. A parameter without a gradient is left alone, with its state, and in a
step of one network those of the other have none: so each is stepped by itself, and what the Trainer saves and resumes
is one optimizer and one schedule, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from .schedule import CriticSchedule
from .training_args import WGANTrainingArguments

CRITIC, GENERATOR = "critic", "generator"


def parameter_groups(
    args: WGANTrainingArguments, critic: nn.Module, generator: nn.Module, takes_betas: bool
) -> list[dict[str, Any]]:
    """One group a network, with its learning rate and, where the optimizer has them, its betas.

    Raises:
        ValueError: a network has nothing to train.
    """
    groups = []
    for name, network in ((CRITIC, critic), (GENERATOR, generator)):
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"{name}: no parameter of {type(network).__name__} requires a gradient; nothing to train.")
        group = {"params": parameters, "network": name, "lr": _of(args, name, "learning_rate")}
        if takes_betas:
            group["betas"] = (_of(args, name, "adam_beta1"), _of(args, name, "adam_beta2"))
        groups.append({**group, "weight_decay": args.weight_decay})
    return groups


def schedule(
    args: WGANTrainingArguments, optimizer: torch.optim.Optimizer, critic_schedule: CriticSchedule, max_steps: int
) -> LambdaLR:
    """One schedule object, stepped with the critic; the generator's rate is a function of its own steps.

    Raises:
        ValueError: the kind of schedule is no function of the step.
    """
    of_critic = _factor(args, CRITIC, max_steps)
    of_generator = _factor(args, GENERATOR, critic_schedule.generator_steps(max_steps))
    factors = {CRITIC: of_critic, GENERATOR: lambda step: of_generator(critic_schedule.generator_steps(step))}
    return LambdaLR(optimizer, [factors[group["network"]] for group in optimizer.param_groups])


def _factor(args: WGANTrainingArguments, network: str, steps: int) -> Callable[[int], float]:
    """The learning rate over its first value, by the step."""
    kind = _of(args, network, "lr_scheduler_type")
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    more: Any = args.lr_scheduler_kwargs
    found = get_scheduler(kind, alone, args.get_warmup_steps(steps), steps, more)
    if not isinstance(found, LambdaLR):
        raise ValueError(
            f"{network}_lr_scheduler_type: '{kind}' follows a metric and not the step, which two networks that are "
            'trained against each other have none for; take "constant", "linear", "cosine" or another of that kind.'
        )
    return found.lr_lambdas[0]


def _of(args: WGANTrainingArguments, network: str, name: str) -> Any:
    own = getattr(args, f"{network}_{name}")
    return getattr(args, name) if own is None else own
