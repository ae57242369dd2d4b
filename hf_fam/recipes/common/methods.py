"""The methods that a recipe can train by, as Trainers."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ...train.trainer import FAMMixin, FAMTrainer
from ...train.training_args import CORRECTED, FAMTrainingArguments
from .arguments import FAM, SAM, MethodArguments
from .checkpoints import RenamedWeightsMixin
from .schedule import MilestonesMixin


def make_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """Make the Trainer of a method.

    The strength is 0 for every method but FAM, which is plain training. Only the loss is scaled as FAM scales it, so
    that the methods can be compared in several processes (docs/distributed.md).

    Args:
        method: name and settings of the method.
        args: the Trainer's arguments; strength and scaling of the loss are changed in place.
        **kwargs: all other arguments of the Trainer.
    """
    if method.method != FAM:
        args.fam_lambda, args.fam_loss_scaling = 0.0, CORRECTED
    trainer = sam_trainer(method.sam_rho) if method.method == SAM else FAMTrainer
    return type("RecipeTrainer", (RenamedWeightsMixin, MilestonesMixin, trainer), {})(
        args=args, lr_milestones=method.lr_milestones, lr_gamma=method.lr_gamma, **kwargs
    )


def sam_trainer(rho: float) -> type[Trainer]:
    """Make the class of a SAM Trainer whose loss is scaled as FAM's.

    Args:
        rho: radius of SAM.
    """
    from .sam_trainer import SAMTrainer  # which needs pytorch_optimizer

    class ScaledSAMTrainer(FAMMixin, SAMTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, rho=rho, **kwargs)

    return ScaledSAMTrainer
