"""The methods that a recipe can train by, as Trainers."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from hf_fam import FAMMixin, FAMTrainer, FAMTrainingArguments

from .arguments import FAM, SAM, MethodArguments
from .checkpoints import WholeCheckpoints
from .schedule import Milestones


def make_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """The Trainer of a method.

    Without FAM the strength is 0, which is plain training, except that the loss is scaled as FAM scales it: else the
    methods could not be compared in several processes (docs/distributed.md).
    """
    if method.method != FAM:
        args.fam_lambda, args.fam_loss_scaling = 0.0, "corrected"
    trainer = sam_trainer(method.sam_rho) if method.method == SAM else FAMTrainer
    return type("RecipeTrainer", (WholeCheckpoints, Milestones, trainer), {})(
        args=args, lr_milestones=method.lr_milestones, lr_gamma=method.lr_gamma, **kwargs
    )


def sam_trainer(rho: float) -> type[Trainer]:
    """SAM, its loss scaled as FAM's."""
    from .sam_trainer import SAMTrainer  # pytorch_optimizer is for SAM alone

    class ScaledSAMTrainer(FAMMixin, SAMTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, rho=rho, **kwargs)

    return ScaledSAMTrainer
