"""The arguments of FAM, alone and mixed into the Trainer's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from torch import nn
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..flatness.estimators import check_choice, estimator_called, estimator_names
from ..layer.finding import AUTO

STOCK, CORRECTED = "stock", "corrected"
LOSS_SCALINGS = (AUTO, STOCK, CORRECTED)

# Fields that do not exist, and what to do instead.
_REMOVED = {
    "fam_max_grad_ratio": "lower fam_lambda, or let it rise with fam_warmup_steps",
    "fam_every_n_steps": "leave it out, the term acts in every step",
    "fam_token_fraction": 'leave it out, fam_estimator="row_probes" is cheap for large vocabularies',
    "fam_gradient": 'leave it out, RelativeFlatness(gradient="weights_only") has it for comparison',
}


def refuse_removed_fields(names: Iterable[str]) -> None:
    """Refuse arguments that hf_fam once had.

    Args:
        names: of the arguments that are given.

    Raises:
        ValueError: one of them does not exist; the message says what to use.
    """
    for name in names:
        if name in _REMOVED:
            raise ValueError(f"{name} is not an argument of hf_fam: {_REMOVED[name]}.")


@dataclass
class FAMArguments:
    """Arguments of flatness-aware training, ``loss + fam_lambda * kappa``.

    A plain dataclass: ``HfArgumentParser`` reads it alone (hand it to ``FAMTrainer(..., fam_args=...)``) or as a base
    of any ``TrainingArguments`` subclass.

    Args:
        fam_layer: the layer to flatten: ``"auto"`` (the head), ``"head"``, ``"representation"`` or a dotted module
            name.
        fam_lambda: strength lambda, at least 0. None takes the default of the estimator (docs/choosing.md); 0 is plain
            training, bit for bit.
        fam_estimator: ``"auto"``, ``"closed_form"``, ``"row_probes"``, ``"hessian"``, ``"gauss_newton"``,
            ``"perturbation"`` or ``"dense"``; see `RelativeFlatness`.
        fam_probes: number of random probes a step, for ``"hessian"`` and ``"gauss_newton"`` (1 by default) and
            ``"row_probes"`` (16 by default).
        fam_center: perturb the features around their running mean, which is kept in ``trainer_state.json``; see
            `RelativeFlatness`. None centers them if a linear head with a bias is all that is trained and the estimator
            can (up to 4096 classes); this is looked up when a training starts. False is the papers' definition.
        fam_warmup_steps: steps over which lambda rises linearly; below 1 a fraction of the training.
        fam_loss_scaling: many classification models accept ``num_items_in_batch`` and ignore it, so that the stock
            Trainer multiplies their gradients by the number of accumulation steps and of processes (transformers
            issue 47688). ``"corrected"`` finds such models at the first step and divides that out, with one warning;
            ``"stock"`` leaves it; ``"auto"`` corrects if lambda is above 0, and leaves plain training as it is.

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
        default=None, metadata={"help": "Strength lambda. Defaults to that of the estimator; 0 is plain training."}
    )
    fam_estimator: str = field(
        default=AUTO,
        metadata={"help": "auto, closed_form, row_probes, hessian, gauss_newton, perturbation or dense."},
    )
    fam_probes: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={"help": "Random probes a step. Defaults to 1 (hessian, gauss_newton) or 16 (row_probes)."},
    )
    fam_center: Optional[bool] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Perturb the features around their running mean. Defaults to true if only the head is trained.",
            "nargs": "?",
            "const": True,  # the bare flag, which HfArgumentParser gives to plain bool alone
        },
    )
    fam_warmup_steps: float = field(
        default=0.0, metadata={"help": "Steps over which lambda rises linearly; below 1 a fraction of the training."}
    )
    fam_loss_scaling: str = field(
        default=AUTO,
        metadata={
            "help": "auto, corrected or stock: whether the loss of models that ignore num_items_in_batch is divided "
            "by the accumulation steps and processes that the stock Trainer multiplies it by."
        },
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> FAMArguments:
        """Refuse removed fields before the dataclass finds them unexpected."""
        refuse_removed_fields(kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Validate, then let the Trainer's arguments do the same."""
        for name in ("fam_lambda", "fam_warmup_steps"):
            _make_float(self, name)
        _make_whole(self, "fam_probes")
        self.validate_fam()
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()

    def validate_fam(self) -> None:
        """Refuse values that are out of range.

        Raises:
            ValueError: with the argument's name, the value and what to do.
        """
        if not isinstance(self.fam_layer, (str, nn.Module)):
            raise ValueError(
                f'fam_layer={self.fam_layer!r}: give "auto", "head", "representation", a dotted module name (a string: '
                'in YAML write "0", with quotes) or a module.'
            )
        if self.fam_center is not None and not isinstance(self.fam_center, bool):
            raise ValueError(f"fam_center={self.fam_center!r}: give True, False or None.")
        check_choice("fam_estimator", self.fam_estimator, estimator_names())
        check_choice("fam_loss_scaling", self.fam_loss_scaling, LOSS_SCALINGS)
        if self.fam_lambda is not None and not (math.isfinite(self.fam_lambda) and self.fam_lambda >= 0):
            raise ValueError(
                f"fam_lambda={self.fam_lambda!r}: a small kappa is flat, so give a finite strength of at least 0 "
                "(0 is plain training), or None for the default."
            )
        if self.fam_probes is not None and self.fam_probes < 1:
            raise ValueError(f"fam_probes={self.fam_probes!r}: give a whole number of at least 1, or None.")
        has_probes = self.fam_estimator == AUTO or estimator_called(self.fam_estimator).default_probes is not None
        if self.fam_probes is not None and not has_probes:
            raise ValueError(
                f'fam_probes={self.fam_probes!r}: fam_estimator="{self.fam_estimator}" has no probes; leave it at None.'
            )
        if not (math.isfinite(self.fam_warmup_steps) and self.fam_warmup_steps >= 0):
            raise ValueError(f"fam_warmup_steps={self.fam_warmup_steps!r}: give steps, or a fraction below 1.")


def _may_be_none(name: str) -> bool:
    return FAMArguments.__dataclass_fields__[name].default is None


def _make_float(args: FAMArguments, name: str) -> None:
    """YAML reads 1e-3 as a string, and a hyperparameter search casts what it tries to the type that is there."""
    given = getattr(args, name)
    try:
        setattr(args, name, None if given is None and _may_be_none(name) else float(given))
    except (TypeError, ValueError):
        raise ValueError(f"{name}={given!r} is not a number: give one, such as 0.001.") from None


def _make_whole(args: FAMArguments, name: str) -> None:
    """As `_make_float`, for what is counted; a search over floats tries 2.0."""
    given = getattr(args, name)
    if given is None and _may_be_none(name):
        return
    try:
        number = float("nan") if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        or_none = ", or None" if _may_be_none(name) else ""
        raise ValueError(f"{name}={given!r}: give a whole number of at least 1{or_none}.")
    setattr(args, name, int(number))


@dataclass
class FAMTrainingArguments(FAMArguments, TrainingArguments):
    """``transformers.TrainingArguments`` and `FAMArguments` in one.

    Examples:
        >>> FAMTrainingArguments(output_dir="out", fam_lambda=0.01, report_to="none").fam_lambda
        0.01
    """


@dataclass
class FAMSeq2SeqTrainingArguments(FAMArguments, Seq2SeqTrainingArguments):
    """``transformers.Seq2SeqTrainingArguments`` and `FAMArguments` in one."""
