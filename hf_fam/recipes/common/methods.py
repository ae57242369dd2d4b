"""The Trainer of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from ...inputs.text import first_line, quote
from ...methods.logistic_regression import FittedHeadTrainer
from ...train.trainer import FAMTrainer
from ...train.training_args import CORRECTED, FAMTrainingArguments
from .arguments import FAM, MethodArguments, make_method
from .card import describe_procedure
from .checkpoints import RenamedWeightsMixin
from .schedule import MilestonesMixin


class RecipeTrainer(RenamedWeightsMixin, MilestonesMixin, FAMTrainer):
    """Flatness-aware or plain training, with what the recipes add to the Trainer.

    Attributes:
        procedure: lines of the model card about the method, by name.
    """

    procedure: Mapping[str, str] | None = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card, with what the Trainer's list does not say about the method."""
        super().create_model_card(*args, **kwargs)
        if self.procedure and self.is_world_process_zero():
            path = Path(str(self.args.output_dir), "README.md")
            describe_procedure(path, self.procedure, isinstance(self, FittedHeadTrainer))


def make_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """Make the Trainer of a method.

    Args:
        method: name and settings of the method.
        args: the Trainer's arguments; strength and scaling of the loss are changed in place.
        **kwargs: all other arguments of the Trainer.

    Raises:
        ValueError: the Trainer or the method refuses its arguments, or an optimizer is missing.
    """
    chosen = make_method(method.method, method, args)
    if method.method == FAM:
        return make_recipe_trainer(method, args, **kwargs)
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
    return make_recipe_trainer(method, args, **kwargs)


def make_recipe_trainer(method: MethodArguments, args: FAMTrainingArguments, **kwargs: Any) -> Trainer:
    """Make a Trainer that is flatness-aware if ``fam_lambda`` is above 0.

    Args:
        method: the schedule of the learning rate is used.
        args: the Trainer's arguments.
        **kwargs: all other arguments of the Trainer.

    Raises:
        ValueError: the Trainer refuses its arguments, or an optimizer is missing.
    """
    try:
        made = RecipeTrainer(args=args, lr_milestones=method.lr_milestones, lr_gamma=method.lr_gamma, **kwargs)
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
        given = f"optim={quote(getattr(args.optim, 'value', args.optim))}" + (
            f", optim_args={quote(args.optim_args)}" if args.optim_args else ""
        )
        raise ValueError(f"{given}: {first_line(error)}") from error
