"""Optimizer and schedule with separate settings for critic and generator.

Both networks are groups of one ``torch.optim`` optimizer. The optimizer skips parameters without a gradient, and in a
step of one network, the other network has no gradients. So each network steps separately, and the Trainer saves and
resumes one optimizer and one schedule as usual.
"""

from __future__ import annotations

import functools
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
    """Return one parameter group for each network.

    A group has its learning rate and, if the optimizer takes them, its betas.

    Raises:
        ValueError: a network has no trainable parameter.
    """
    groups = []
    for name, network in ((CRITIC, critic), (GENERATOR, generator)):
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"{name}: no parameter of {type(network).__name__} requires a gradient: unfreeze some.")
        group = {"params": parameters, "network": name, "lr": _network_setting(args, name, "learning_rate")}
        if takes_betas:
            group["betas"] = (_network_setting(args, name, "adam_beta1"), _network_setting(args, name, "adam_beta2"))
        groups.append({**group, "weight_decay": args.weight_decay})
    return groups


def schedule(
    args: WGANTrainingArguments, optimizer: torch.optim.Optimizer, critic_schedule: CriticSchedule, max_steps: int
) -> LambdaLR:
    """Return one schedule, which steps with the critic.

    The generator's learning rate is a function of its own steps.

    Raises:
        ValueError: the kind of schedule does not depend on the step alone.
    """
    critic_factor = _learning_rate_factor(args, CRITIC, max_steps)
    generator_factor = _learning_rate_factor(args, GENERATOR, critic_schedule.generator_steps(max_steps))
    factors: dict[Any, Callable[[int], float]] = {
        CRITIC: critic_factor,
        GENERATOR: functools.partial(_after_critic_steps, generator_factor, critic_schedule),
    }
    return LambdaLR(optimizer, [factors[group["network"]] for group in optimizer.param_groups])


def _after_critic_steps(factor: Callable[[int], float], critic_schedule: CriticSchedule, steps: int) -> float:
    """Return a function of the generator's steps after some critic steps."""
    return factor(critic_schedule.generator_steps(steps))


def _learning_rate_factor(args: WGANTrainingArguments, network: str, steps: int) -> Callable[[int], float]:
    """Return the learning rate over its first value, as a function of the step."""
    kind = _network_setting(args, network, "lr_scheduler_type")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    options: Any = args.lr_scheduler_kwargs
    scheduler = get_scheduler(kind, optimizer, args.get_warmup_steps(steps), steps, options)
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"{network}_lr_scheduler_type: '{kind}' follows a metric, which two networks trained against each other do "
            'not have. Give a schedule by the step, such as "constant", "linear" or "cosine".'
        )
    return scheduler.lr_lambdas[0]


def _network_setting(args: WGANTrainingArguments, network: str, name: str) -> Any:
    own = getattr(args, f"{network}_{name}")
    return getattr(args, name) if own is None else own
