"""Arguments of flatness-aware training, alone and as part of the Trainer's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from torch import nn
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..flatness.estimators import check_choice, estimator_called, estimator_names
from ..inputs.numbers import MOST_PROBES, require_number, require_whole
from ..inputs.secrets import hide_token
from ..inputs.text import quote
from ..layer.finding import AUTO
from .removed_fields import refuse_removed_fields

STOCK, CORRECTED = "stock", "corrected"
LOSS_SCALINGS = (AUTO, STOCK, CORRECTED)


@dataclass
class FAMArguments:
    """Arguments of flatness-aware training.

    The training minimizes ``loss + fam_lambda * kappa``. A small kappa is flat.

    Use it alone, as ``FAMTrainer(..., fam_args=FAMArguments(...))``, or as a base class of your own training arguments.
    ``HfArgumentParser`` reads both. `FAMTrainingArguments` combines it with the Trainer's arguments.

    Args:
        fam_layer: the layer to flatten. ``"auto"`` and ``"head"`` are the classification head, ``"representation"`` is
            the hidden layer whose outputs the head reads. A dotted module name selects any other layer.
        fam_lambda: strength of the flatness term, at least 0. Defaults to the strength of the estimator
            (docs/choosing.md). 0 is plain training, bit for bit.
        fam_estimator: how kappa is computed: ``"auto"``, ``"closed_form"``, ``"row_probes"``, ``"hessian"``,
            ``"gauss_newton"``, ``"perturbation"`` or ``"dense"``; see `RelativeFlatness`.
        fam_probes: number of random probes in a step. Defaults to 1 for ``"hessian"`` and ``"gauss_newton"`` and to 16
            for ``"row_probes"``.
        fam_center: perturb the features around their running mean; see `RelativeFlatness`. By default, features are
            centered when only a head with a bias is trained and the estimator supports it. The papers' definition is
            False. The mean is saved in ``trainer_state.json``.
        fam_smoothing: eps of the smoothed kappa, at least 0 and below 1; see `RelativeFlatness`. With 0.1, a confident
            model does not count as flat. Defaults to 0.1 when only a head of at most 4,096 classes is trained, and to
            0 otherwise. The papers' definition is 0.
        fam_warmup_steps: number of steps over which lambda rises linearly. A number below 1 is a fraction of the
            training.
        fam_loss_scaling: what to do about models that accept ``num_items_in_batch`` but ignore it. The stock Trainer
            multiplies their gradients by the number of accumulation steps and processes (transformers issue 47688).
            ``"corrected"`` detects such models at the first step, divides the factor out and warns once. ``"stock"``
            keeps the factor. ``"auto"`` corrects it when lambda is above 0.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Examples:
        >>> from transformers import HfArgumentParser
        >>> (fam,) = HfArgumentParser(FAMArguments).parse_args_into_dataclasses(["--fam_lambda", "0.01"])
        >>> fam.fam_lambda, fam.fam_layer
        (0.01, 'auto')
    """

    fam_layer: str = field(
        default=AUTO,
        metadata={"help": "Layer to flatten: auto (the head), head, representation, or a dotted module name."},
    )
    fam_lambda: Optional[float] = field(  # noqa: UP045 -- HfArgumentParser reads this form on every Python
        default=None,
        metadata={"help": "Strength of the flatness term. Defaults to that of the estimator. 0 is plain training."},
    )
    fam_estimator: str = field(
        default=AUTO,
        metadata={
            "help": "How to compute kappa: auto, closed_form, row_probes, hessian, gauss_newton, perturbation or dense."
        },
    )
    fam_probes: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Number of random probes in a step. Defaults to 1 (hessian, gauss_newton) or 16 (row_probes)."
        },
    )
    fam_center: Optional[bool] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Perturb the features around their running mean. Defaults to true if only the head is trained.",
            "nargs": "?",
            "const": True,  # allows the bare flag, as for fields of type bool
        },
    )
    fam_smoothing: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Smooths the probabilities in kappa, at least 0 and below 1. Defaults to 0.1 if only a head is "
            "trained, else to 0, the papers' definition."
        },
    )
    fam_warmup_steps: float = field(
        default=0.0,
        metadata={"help": "Number of steps over which lambda rises linearly. Below 1: a fraction of the training."},
    )
    fam_loss_scaling: str = field(
        default=AUTO,
        metadata={
            "help": "auto, corrected or stock. The stock Trainer multiplies the gradients of models that ignore "
            "num_items_in_batch by the accumulation steps and processes; corrected divides this factor out."
        },
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> FAMArguments:
        """Refuse removed fields with a message that says what to do instead."""
        refuse_removed_fields(kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Validate these arguments, then those of the next base class."""
        self.validate_fam()
        parent_post_init = getattr(super(), "__post_init__", None)
        if parent_post_init is not None:
            parent_post_init()
        hide_token(self)

    def validate_fam(self) -> None:
        """Convert numbers, and refuse values that are out of range.

        YAML reads 1e-3 as a string.

        Raises:
            ValueError: a value is out of range. The message names the argument, the value and what to do.
        """
        if not isinstance(self.fam_layer, (str, nn.Module)):
            raise ValueError(
                f'fam_layer={quote(self.fam_layer)}: give "auto", "head", "representation", a dotted module name (in '
                'YAML with quotes: "0") or a module.'
            )
        if self.fam_center is not None and not isinstance(self.fam_center, bool):
            raise ValueError(f"fam_center={quote(self.fam_center)}: give True, False or None.")
        check_choice("fam_estimator", self.fam_estimator, estimator_names())
        check_choice("fam_loss_scaling", self.fam_loss_scaling, LOSS_SCALINGS)
        if self.fam_lambda is not None:  # 0 is plain training
            self.fam_lambda = require_number(
                "fam_lambda", self.fam_lambda, 0, more=" (0 is plain training), or None for the default"
            )
        self.fam_warmup_steps = require_number(
            "fam_warmup_steps", self.fam_warmup_steps, 0, more=": steps, or a fraction below 1"
        )
        if self.fam_probes is not None:
            self.fam_probes = require_whole(
                "fam_probes", self.fam_probes, 1, MOST_PROBES, more=", or None for the default"
            )
            if self.fam_estimator != AUTO and estimator_called(self.fam_estimator).default_probes is None:
                raise ValueError(
                    f'fam_probes={self.fam_probes!r}: fam_estimator="{self.fam_estimator}" has no probes, so leave '
                    "fam_probes at None."
                )
        if self.fam_smoothing is not None:
            self.fam_smoothing = require_number(
                "fam_smoothing", self.fam_smoothing, 0, 1, open_high=True, more=", or None for the default"
            )
        can_smooth = self.fam_estimator == AUTO or estimator_called(self.fam_estimator).can_smooth
        if self.fam_smoothing and not can_smooth:
            raise ValueError(
                f'fam_smoothing={self.fam_smoothing!r}: fam_estimator="{self.fam_estimator}" cannot smooth, so set it '
                'to 0, or use "closed_form", "row_probes" or "gauss_newton".'
            )


@dataclass
class FAMTrainingArguments(FAMArguments, TrainingArguments):
    """``transformers.TrainingArguments`` together with `FAMArguments`.

    It takes the ``fam_*`` arguments of `FAMArguments` and all arguments of ``transformers.TrainingArguments``. The
    signature shows the first ones only.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Examples:
        >>> FAMTrainingArguments(output_dir="out", fam_lambda=0.01, report_to="none").fam_lambda
        0.01
    """

    __repr__ = TrainingArguments.__repr__  # hides tokens


@dataclass
class FAMSeq2SeqTrainingArguments(FAMArguments, Seq2SeqTrainingArguments):
    """``transformers.Seq2SeqTrainingArguments`` together with `FAMArguments`.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Examples:
        >>> FAMSeq2SeqTrainingArguments(output_dir="out", predict_with_generate=True, report_to="none").fam_layer
        'auto'
    """

    __repr__ = TrainingArguments.__repr__  # hides tokens
