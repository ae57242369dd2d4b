"""The methods that a recipe can train by, as Trainers."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from hf_fam import FAMMixin, FAMTrainer, FAMTrainingArguments

from .arguments import FAM, SAM, MethodArguments


def make_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """The Trainer of a method.

    Without FAM the strength is 0, which is plain training, except that the loss is scaled as FAM scales it: else the
    methods could not be compared in several processes (docs/distributed.md).
    """
    if method.method == FAM:
        return FAMTrainer(args=args, **kwargs)
    args.fam_lambda, args.fam_loss_scaling = 0.0, "corrected"
    if method.method == SAM:
        return make_sam_trainer(method.sam_rho, args, **kwargs)
    return FAMTrainer(args=args, **kwargs)


def make_sam_trainer(rho: float, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    from .sam_trainer import SAMTrainer  # pytorch_optimizer is for SAM alone

    class ScaledSAMTrainer(FAMMixin, SAMTrainer):
        """SAM, its loss scaled as FAM's."""

    return ScaledSAMTrainer(args=args, rho=rho, **kwargs)
