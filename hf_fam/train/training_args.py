"""The arguments of FAM, alone and mixed into the Trainer's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional

from torch import nn
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..flatness.estimators import (
    ESTIMATORS,
    FULL,
    GRADIENTS,
    HEAD_ESTIMATORS,
    PERTURBATION,
    WEIGHTS_ONLY,
    WITHOUT_PROBES,
    check_choice,
)
from ..flatness.head_sampling import check_token_fraction
from ..layer.finding import AUTO

STOCK, CORRECTED = "stock", "corrected"
LOSS_SCALINGS = (AUTO, STOCK, CORRECTED)


@dataclass
class FAMArguments:
    """Arguments of flatness-aware training, ``loss + fam_lambda * kappa``.

    A plain dataclass: ``HfArgumentParser`` reads it alone (hand it to ``FAMTrainer(..., fam_args=...)``) or as a base
    of any ``TrainingArguments`` subclass.

    **What is flattened**

    Args:
        fam_layer: ``"auto"`` (the head), ``"head"``, ``"representation"`` or a dotted module name.
        fam_estimator: ``"auto"``, ``"closed_form"``, ``"row_probes"``, ``"hessian"``, ``"gauss_newton"``,
            ``"perturbation"`` or ``"dense"``; see `RelativeFlatness`.
        fam_probes: number of random probes a step, for ``"hessian"`` and ``"gauss_newton"`` (1 by default) and
            ``"row_probes"`` (16 by default).
        fam_token_fraction: for ``"closed_form"`` and ``"row_probes"``: the part of the labeled tokens (or items) that
            the term looks at, drawn anew for every batch, above 0 and at most 1 (all).
        fam_center: perturb the features around their running mean, which is kept in ``trainer_state.json``; see
            `RelativeFlatness`. For layers on a frozen trunk. None: where a linear head with a bias is all that is
            trained, and the estimator can (not above 4096 classes); looked at when a training starts. False: the
            papers' definition everywhere.
        fam_gradient: ``"full"``, or ``"weights_only"``: term I of the paper's Lemma 1 alone, for comparison.

    **How strongly**

        fam_lambda: strength lambda, at least 0; None takes the documented default
            (``hf_fam.flatness.strength.default_lambda``). 0 is plain training, bit for bit.
        fam_warmup_steps: steps over which lambda rises linearly; below 1 a fraction of the training.
        fam_every_n_steps: apply the term every n-th step only, n times as strongly (unbiased).
        fam_max_grad_ratio: upper limit for the term's gradient norm over the loss's, at the features, by the ratio
            of the whole batch of the step before; the first step (with centered features the second) only measures it.
            It lowers lambda and never raises it. Where nothing below the layer is trained, and at heads of more than
            4096 classes, it is the ratio at the layer's *outputs*, which does not count how the term acts on the
            weight. None: no limit.

    **How the loss is scaled**

        fam_loss_scaling: many classification models accept ``num_items_in_batch`` and ignore it, so that the stock
            Trainer multiplies their gradients by the number of accumulation steps and of processes (transformers
            issue 47688). ``"corrected"`` finds such models at the first step and divides that out, with one warning;
            ``"stock"`` leaves it; ``"auto"`` corrects where FAM acts (lambda > 0) and leaves plain training as it is.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Examples:
        >>> from transformers import HfArgumentParser
        >>> (fam,) = HfArgumentParser(FAMArguments).parse_args_into_dataclasses(["--fam_lambda", "0.01"])
        >>> fam.fam_lambda, fam.fam_layer
        (0.01, 'auto')
    """

    fam_layer: str = field(
        default=AUTO, metadata={"help": "Feature layer: auto (the head), head, representation, or a dotted name."}
    )
    fam_estimator: str = field(
        default=AUTO,
        metadata={"help": "auto, closed_form, row_probes, hessian, gauss_newton, perturbation or dense."},
    )
    fam_probes: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "Random probes a step; unset: 1 (hessian, gauss_newton) or 16 (row_probes)."}
    )
    fam_token_fraction: float = field(
        default=1.0, metadata={"help": "Part of the labeled tokens that closed_form and row_probes look at."}
    )
    fam_center: Optional[bool] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Perturb the features around their running mean; unset: where the head alone is trained.",
            "nargs": "?",
            "const": True,  # the bare flag, which HfArgumentParser gives to plain bool alone
        },
    )
    fam_lambda: Optional[float] = field(  # noqa: UP045 -- HfArgumentParser reads this form on every Python
        default=None, metadata={"help": "Strength lambda; unset: the estimator's default; 0: plain training."}
    )
    fam_warmup_steps: float = field(
        default=0.0, metadata={"help": "Steps over which lambda rises linearly; below 1 a fraction of the training."}
    )
    fam_every_n_steps: int = field(
        default=1, metadata={"help": "Apply the term every n-th step only, n times as strongly."}
    )
    fam_max_grad_ratio: Optional[float] = field(  # noqa: UP045
        default=None, metadata={"help": "Upper limit for the term's gradient norm over the loss's, at the features."}
    )
    fam_gradient: str = field(
        default=FULL, metadata={"help": "full, or weights_only (what the papers' released code effectively computes)."}
    )
    fam_loss_scaling: str = field(
        default=AUTO,
        metadata={
            "help": "auto, corrected or stock: whether the loss of models that ignore num_items_in_batch is divided "
            "by the accumulation steps and processes that the stock Trainer multiplies it by."
        },
    )

    def __post_init__(self) -> None:
        """Validate, then let the Trainer's arguments do the same."""
        for name in ("fam_lambda", "fam_warmup_steps", "fam_max_grad_ratio", "fam_token_fraction"):
            _make_float(self, name)
        for name in ("fam_probes", "fam_every_n_steps"):
            _make_whole(self, name)
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
        check_choice("fam_estimator", self.fam_estimator, ESTIMATORS)
        check_choice("fam_gradient", self.fam_gradient, GRADIENTS)
        check_choice("fam_loss_scaling", self.fam_loss_scaling, LOSS_SCALINGS)
        if self.fam_lambda is not None and not (math.isfinite(self.fam_lambda) and self.fam_lambda >= 0):
            raise ValueError(
                f"fam_lambda={self.fam_lambda!r}: a small kappa is flat, so give a finite strength of at least 0 "
                "(0 is plain training), or None for the default."
            )
        if self.fam_probes is not None and self.fam_probes < 1:
            raise ValueError(f"fam_probes={self.fam_probes!r}: give a whole number of at least 1, or None.")
        if self.fam_probes is not None and self.fam_estimator in WITHOUT_PROBES:
            raise ValueError(
                f'fam_probes={self.fam_probes!r}: fam_estimator="{self.fam_estimator}" has no probes; leave it at None.'
            )
        check_token_fraction("fam_token_fraction", self.fam_token_fraction)
        if self.fam_token_fraction != 1 and self.fam_estimator not in (AUTO, *HEAD_ESTIMATORS):
            raise ValueError(
                f"fam_token_fraction={self.fam_token_fraction!r} is for the layer into the logits "
                f'(fam_estimator={", ".join(map(repr, HEAD_ESTIMATORS))}), not for "{self.fam_estimator}": '
                "leave it at 1."
            )
        if not (math.isfinite(self.fam_warmup_steps) and self.fam_warmup_steps >= 0):
            raise ValueError(f"fam_warmup_steps={self.fam_warmup_steps!r}: give steps, or a fraction below 1.")
        if self.fam_every_n_steps < 1 or self.fam_every_n_steps != int(self.fam_every_n_steps):
            raise ValueError(f"fam_every_n_steps={self.fam_every_n_steps!r}: give a whole number of at least 1.")
        if self.fam_max_grad_ratio is not None and not self.fam_max_grad_ratio > 0:
            raise ValueError(f"fam_max_grad_ratio={self.fam_max_grad_ratio!r}: give a positive ratio, or None.")
        if self.fam_max_grad_ratio is not None and self.fam_estimator == PERTURBATION:
            raise ValueError(
                f'fam_max_grad_ratio={self.fam_max_grad_ratio!r} cannot cap fam_estimator="{PERTURBATION}", whose '
                "term has no gradient of its own to measure: leave it at None, and lower fam_lambda."
            )
        if self.fam_max_grad_ratio is not None and self.fam_gradient == WEIGHTS_ONLY:
            raise ValueError(
                f'fam_max_grad_ratio={self.fam_max_grad_ratio!r} cannot cap fam_gradient="{WEIGHTS_ONLY}", whose term '
                "has no gradient at the features: leave it at None, and lower fam_lambda."
            )


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
