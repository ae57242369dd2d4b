"""The Trainer of a recipe."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ...train.trainer import FAMTrainer
from ...train.training_args import CORRECTED, FAMTrainingArguments
from .arguments import FAM, MethodArguments, make_method
from .checkpoints import RenamedWeightsMixin
from .schedule import MilestonesMixin


class RecipeTrainer(RenamedWeightsMixin, MilestonesMixin, FAMTrainer):
    """Flatness-aware or plain training, with what the recipes add to the Trainer."""


def make_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """Make the Trainer of a method.

    Args:
        method: name and settings of the method.
        args: the Trainer's arguments; strength and scaling of the loss are changed in place.
        **kwargs: all other arguments of the Trainer.
    """
    chosen = make_method(method.method, method, args)
    if method.method == FAM:
        return RecipeTrainer(args=args, lr_milestones=method.lr_milestones, lr_gamma=method.lr_gamma, **kwargs)
    trainer = make_plain_trainer(method, args, **kwargs)
    chosen.apply(trainer)
    return trainer


def make_plain_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """Make a Trainer of plain training, which a method of `hf_fam.methods` can change.

    Its loss is scaled as FAM scales it, so that methods can be compared in several processes (docs/distributed.md).

    Args:
        method: the schedule of the learning rate is used.
        args: the Trainer's arguments; strength and scaling of the loss are changed in place.
        **kwargs: all other arguments of the Trainer.
    """
    args.fam_lambda, args.fam_loss_scaling = 0.0, CORRECTED
    return RecipeTrainer(args=args, lr_milestones=method.lr_milestones, lr_gamma=method.lr_gamma, **kwargs)
