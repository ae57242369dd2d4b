"""The methods that a recipe can train by, as Trainers."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ...inputs.text import first_line, quote
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

    Raises:
        ValueError: the Trainer refuses its arguments, or an optimizer is missing.
    """
    if method.method != FAM:
        args.fam_lambda, args.fam_loss_scaling = 0.0, CORRECTED
    trainer = sam_trainer(method.sam_rho) if method.method == SAM else FAMTrainer
    trainer_class = type("RecipeTrainer", (RenamedWeightsMixin, MilestonesMixin, trainer), {})
    try:
        made: Trainer = trainer_class(args=args, lr_milestones=method.lr_milestones, lr_gamma=method.lr_gamma, **kwargs)
    except ValueError:
        raise
    except Exception as error:  # of many kinds: a layer of another kind, a missing package, an unreachable Hub
        cause = "push_to_hub: " if args.push_to_hub and isinstance(error, OSError) else ""
        raise ValueError(f"{cause}{first_line(error)}") from error
    check_optimizer(args, made.model)
    return made


def check_optimizer(args: FAMTrainingArguments, model: Any) -> None:
    """Refuse an optimizer whose package is missing, or that does not take its arguments.

    Args:
        args: the Trainer's arguments.
        model: the model to train.

    Raises:
        ValueError: names optim and optim_args.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except Exception as error:  # of the optimizers' own kinds
        given = f"optim={quote(str(args.optim))}" + (
            f", optim_args={quote(args.optim_args)}" if args.optim_args else ""
        )
        raise ValueError(f"{given}: {first_line(error)}") from error


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
