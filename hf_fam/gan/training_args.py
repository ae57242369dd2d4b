"""The arguments of WGAN training, mixed into the Trainer's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from transformers import TrainingArguments

from ..inputs.secrets import hide_token
from ..inputs.text import quote
from .argument_checks import (
    NONE,
    NORMAL,
    POINTS,
    check_optimizers,
    check_penalty_settings,
    check_samples,
    check_steps,
    numbers_from_strings,
)
from .penalty import ONE
from .points import GeneratedPoints, LinePoints, LocalPoints, RealPoints
from .schedule import CriticSchedule

# Metrics of which less is better. For other names without "loss" at the end, the Trainer prefers more.
_DISTANCES = ("emd", "frechet_distance", "wasserstein_estimate", "gradient_penalty", "gradient_violation")

# HfArgumentParser reads annotations, and some versions of Python 3.10 do not resolve "X | None" from strings.
# ruff: noqa: UP045


@dataclass
class WGANTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` and those of `WGANTrainer`.

    A *step* of the Trainer (``max_steps``, ``logging_steps``, ``save_steps``, epochs) is one step of the critic on one
    batch of real samples. A step of the generator follows every ``n_critic``-th critic step.

    Defaults that differ from the Trainer's: Adam with a constant learning rate of 1e-4 and betas (0.5, 0.9), no
    gradient clipping (``max_grad_norm=0``), unused columns kept.

    The critic's loss has the term ``penalty_lambda * E penalty(||grad f(x)||)``, with the mean over the points that
    ``penalty_points`` names (Petzka et al. 2018, Gulrajani et al. 2017).

    Both optimizers are of the kind ``optim``. Warm-up steps of the learning rate count each network's own steps.

    Args:
        latent_size: number of entries of a latent code. Defaults to the generator's attribute ``latent_size``, its own
            or that of its config.
        num_classes: number of classes of conditional networks, ``generator(latents, labels)`` and
            ``critic(samples, labels)``. Generated samples get the labels of the real batch. Defaults to networks
            without labels.
        latent_prior: ``"normal"``, or ``"uniform"`` on (-1, 1).
        n_critic: number of critic steps before each generator step.
        n_critic_warmup: number of critic steps before each generator step during the warm-up. Defaults to no warm-up.
        n_critic_warmup_steps: number of generator steps of the warm-up.
        n_critic_warmup_every: interval, in generator steps, of further warm-up steps. 0 means none.
        max_generator_steps: length of the training in generator steps. It sets ``max_steps``.
        penalty: ``"one"`` (WGAN-LP), ``"two"`` (WGAN-GP), ``"zero"`` (R1, R2) or ``"none"``, for a critic with
            ``clip_limit`` or with spectral normalization.
        penalty_lambda: strength of the penalty, positive.
        penalty_target: largest gradient norm without a penalty.
        penalty_points: where the penalty applies: ``"line"`` between real and generated samples, ``"local"`` around
            real ones, ``"local_generated"``, ``"local_both"``, ``"real"`` or ``"generated"``.
        penalty_radius: radius of the local points, in standard deviations of the data.
        penalty_every: interval of critic steps with a penalty, which is then that many times as strong.
        clip_limit: clips the critic's weights to +-clip_limit after each of its steps. Needs ``penalty="none"``.
        critic_learning_rate: learning rate of the critic. Defaults to ``learning_rate``.
        critic_adam_beta1: Adam's beta1 of the critic. Defaults to ``adam_beta1``.
        critic_adam_beta2: Adam's beta2 of the critic. Defaults to ``adam_beta2``.
        critic_lr_scheduler_type: learning rate schedule of the critic. Defaults to ``lr_scheduler_type``.
        generator_learning_rate: learning rate of the generator. Defaults to ``learning_rate``.
        generator_adam_beta1: Adam's beta1 of the generator. Defaults to ``adam_beta1``.
        generator_adam_beta2: Adam's beta2 of the generator. Defaults to ``adam_beta2``.
        generator_lr_scheduler_type: learning rate schedule of the generator, over its own steps. Defaults to
            ``lr_scheduler_type``.
        ema_decay: decay of a moving average of the generator's weights. Evaluation and sample grids use the average.
            Defaults to no average.
        sample_steps: interval of steps at which a grid of samples is saved, and at the end. 0 means none.
        sample_count: number of samples in a grid, always of the same latent codes.
        sample_low: value of black in the samples, for images.
        sample_high: value of white in the samples, for images.
        eval_samples: number of real samples, and of generated ones, that an evaluation compares.
        eval_emd: compute the exact earth mover's distance, for few dimensions and a few thousand samples.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Examples:
        >>> args = WGANTrainingArguments(output_dir="out", max_generator_steps=100, report_to="none")
        >>> args.max_steps, args.penalty, args.penalty_lambda
        (500, 'one', 10.0)
    """

    __repr__ = TrainingArguments.__repr__  # hides tokens

    # Other defaults of the Trainer's arguments.
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Learning rate of both networks, unless a network has its own."}
    )
    adam_beta1: float = field(default=0.5, metadata={"help": "Adam's beta1 of both networks, unless set for one."})
    adam_beta2: float = field(default=0.9, metadata={"help": "Adam's beta2 of both networks, unless set for one."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Schedule of both networks, unless set for one."}
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip each network's gradient to this norm; 0: no clipping."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave at False: the collator selects columns."}
    )

    latent_size: Optional[int] = field(
        default=None, metadata={"help": "Numbers in a latent code; default: the generator's attribute latent_size."}
    )
    num_classes: Optional[int] = field(
        default=None, metadata={"help": "Classes of conditional networks; default: networks without labels."}
    )
    latent_prior: str = field(
        default=NORMAL, metadata={"help": "Distribution of latent codes: normal, or uniform on (-1, 1)."}
    )
    n_critic: int = field(default=5, metadata={"help": "Critic steps before each generator step."})
    n_critic_warmup: Optional[int] = field(
        default=None, metadata={"help": "Critic steps before each generator step during the warm-up."}
    )
    n_critic_warmup_steps: int = field(default=25, metadata={"help": "Generator steps of the warm-up."})
    n_critic_warmup_every: int = field(
        default=0, metadata={"help": "Interval, in generator steps, of further warm-up steps; 0: none."}
    )
    max_generator_steps: Optional[int] = field(
        default=None, metadata={"help": "Length of the training in generator steps; sets max_steps."}
    )
    penalty: str = field(default=ONE, metadata={"help": "one (WGAN-LP), two (WGAN-GP), zero (R1, R2) or none."})
    penalty_lambda: float = field(default=10.0, metadata={"help": "Strength of the penalty."})
    penalty_target: float = field(default=1.0, metadata={"help": "Largest gradient norm without a penalty."})
    penalty_points: str = field(
        default="line", metadata={"help": f"Points of the penalty: one of {', '.join(POINTS)}."}
    )
    penalty_radius: float = field(default=1.0, metadata={"help": "Radius of local points, in standard deviations."})
    penalty_every: int = field(
        default=1, metadata={"help": "Lazy penalty: only at every n-th critic step, n times as strong."}
    )
    clip_limit: Optional[float] = field(
        default=None, metadata={"help": "Clip the critic's weights to this size; needs penalty none."}
    )
    critic_learning_rate: Optional[float] = field(
        default=None, metadata={"help": "Learning rate of the critic; default: learning_rate."}
    )
    critic_adam_beta1: Optional[float] = field(
        default=None, metadata={"help": "Adam's beta1 of the critic; default: adam_beta1."}
    )
    critic_adam_beta2: Optional[float] = field(
        default=None, metadata={"help": "Adam's beta2 of the critic; default: adam_beta2."}
    )
    critic_lr_scheduler_type: Optional[str] = field(
        default=None, metadata={"help": "Schedule of the critic; default: lr_scheduler_type."}
    )
    generator_learning_rate: Optional[float] = field(
        default=None, metadata={"help": "Learning rate of the generator; default: learning_rate."}
    )
    generator_adam_beta1: Optional[float] = field(
        default=None, metadata={"help": "Adam's beta1 of the generator; default: adam_beta1."}
    )
    generator_adam_beta2: Optional[float] = field(
        default=None, metadata={"help": "Adam's beta2 of the generator; default: adam_beta2."}
    )
    generator_lr_scheduler_type: Optional[str] = field(
        default=None, metadata={"help": "Schedule of the generator's own steps; default: lr_scheduler_type."}
    )
    ema_decay: Optional[float] = field(
        default=None, metadata={"help": "Decay of a moving average of the generator's weights."}
    )
    sample_steps: int = field(
        default=0, metadata={"help": "Interval of steps at which a grid of samples is saved; 0: none."}
    )
    sample_count: int = field(default=64, metadata={"help": "Samples in a grid."})
    sample_low: float = field(default=-1.0, metadata={"help": "Value of black in the samples, for images."})
    sample_high: float = field(default=1.0, metadata={"help": "Value of white in the samples, for images."})
    eval_samples: int = field(default=1000, metadata={"help": "Samples of each kind that an evaluation compares."})
    eval_emd: bool = field(
        default=False, metadata={"help": "Compute the exact earth mover's distance, for few dimensions."}
    )

    def __post_init__(self) -> None:
        """Validate, then let the Trainer's arguments do the same."""
        self.penalty = NONE if self.penalty is None else self.penalty
        numbers_from_strings(self)
        check_steps(self)
        if not isinstance(self.eval_emd, bool):
            raise ValueError(f"eval_emd={quote(self.eval_emd)}: give True or False.")
        check_penalty_settings(self)
        check_optimizers(self)
        check_samples(self)
        if self.max_generator_steps is not None:
            steps = self.critic_schedule.critic_steps(self.max_generator_steps)
            if self.max_steps not in (-1, steps):
                raise ValueError(
                    f"max_steps={self.max_steps} contradicts max_generator_steps={self.max_generator_steps}, which "
                    f"means max_steps={steps}: give one of them."
                )
            self.max_steps = steps
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric in _DISTANCES and self.greater_is_better is None:
            self.greater_is_better = False
        super().__post_init__()
        hide_token(self)

    @property
    def critic_schedule(self) -> CriticSchedule:
        """Return the number of critic steps before each generator step."""
        if self.n_critic_warmup is None:
            return CriticSchedule(self.n_critic, self.n_critic)
        return CriticSchedule(
            self.n_critic, self.n_critic_warmup, self.n_critic_warmup_steps, self.n_critic_warmup_every
        )

    @property
    def sampler(self) -> LinePoints | LocalPoints | RealPoints | GeneratedPoints:
        """Return the object that draws the points of the penalty."""
        if self.penalty_points.startswith("local"):
            around = self.penalty_points.removeprefix("local").removeprefix("_") or "real"
            return LocalPoints(around, self.penalty_radius)
        if self.penalty_points == "line":
            return LinePoints()
        return RealPoints() if self.penalty_points == "real" else GeneratedPoints()
