"""The strength lambda of the term: given or by default, warmed up, capped."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .estimators import CLOSED_FORM, DENSE, GAUSS_NEWTON, HEAD_ESTIMATORS, HESSIAN, PERTURBATION, ROW_PROBES
from .flatness.heads import LARGE_VOCABULARY

# Of five strengths on four small tasks, those that a rule takes which looks at the worst task first, then at the mean
# likelihood (recipes/comparison/plans/first_strengths.yaml). Where a trunk is trained, nothing stronger was found to
# help; on a frozen one more does, but no one choice was harmless on every task (docs/results.md, "Decided beforehand").
DEFAULT_LAMBDA = {
    **dict.fromkeys((CLOSED_FORM, ROW_PROBES, DENSE, HESSIAN, GAUSS_NEWTON), 0.001),
    PERTURBATION: 0.003,
}

# Language models' heads have far larger features: kappa of SmolLM2-135M's is in the thousands, so that 0.001 would be a
# term of several times the loss. Not the outcome of a study.
LARGE_HEAD_LAMBDA = 1e-6


def default_lambda(estimator: str, out_features: int) -> float:
    """The strength that is taken where none is given: careful rather than helpful.

    At the head, 0.001 changed the metric (in points, against plain training, ten fresh seeds; in brackets the lower end
    of the one-sided 95 % interval) by +0.36 [-0.03] on CoLA, -0.06 [-0.18] on MRPC and +0.02 [-0.28] on Banking77 in
    full fine-tuning, by +0.12 on FashionMNIST from scratch: harmless, and no gain; on CIFAR-10, fine-tuned, by -0.90
    [-1.75], p .09, which does not show it harmless. Stronger ones gain in some regimes (0.01 at the head from scratch:
    +0.60, p < .001; 0.01 at a hidden layer on frozen embeddings; 0.003 with LoRA and wrong labels) and were not
    harmless in others (docs/results.md, "Decided beforehand"; docs/choosing.md).

    Args:
        estimator: its name.
        out_features: d, which for a head is the number of classes.

    Examples:
        >>> default_lambda("closed_form", 77), default_lambda("row_probes", 49_152)
        (0.001, 1e-06)
    """
    large = estimator in HEAD_ESTIMATORS and out_features > LARGE_VOCABULARY
    return LARGE_HEAD_LAMBDA if large else DEFAULT_LAMBDA[estimator]


@dataclass(frozen=True)
class Strength:
    """lambda as a function of the step.

    Args:
        value: lambda after warm-up.
        warmup_steps: number of steps over which lambda rises linearly.
        max_grad_ratio: upper limit for ``||lambda d kappa|| / ||d loss||`` at the features, or None for no limit. It
            lowers lambda and never raises it: strengths that follow the ratio upwards run away as kappa vanishes.

    Examples:
        >>> strength = Strength(0.01, warmup_steps=4, max_grad_ratio=0.5)
        >>> strength.at(0), strength.at(10), strength.at(10, unit_ratio=100.0)
        (0.0025, 0.01, 0.005)
    """

    value: float
    warmup_steps: int = 0
    max_grad_ratio: float | None = None

    def at(self, step: int, unit_ratio: float | None = None) -> float:
        """lambda at a step.

        Args:
            step: optimiser steps already taken.
            unit_ratio: ``||d kappa|| / ||d loss||`` at the features in the step before, or None if unknown.
        """
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        strength = self.value * warm
        if self.max_grad_ratio is None or not unit_ratio:
            return strength
        return min(strength, self.max_grad_ratio / unit_ratio)


def warmup_steps(given: float, total_steps: int) -> int:
    """Warm-up in steps by the Trainer's convention: below 1 it is a fraction of the training.

    Examples:
        >>> warmup_steps(0.1, 50), warmup_steps(7, 50)
        (5, 7)
    """
    return int(given) if given >= 1 else math.ceil(total_steps * given)
