"""The strength lambda of the term: given or by default, warmed up, capped."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from .estimators import CLOSED_FORM, DENSE, GAUSS_NEWTON, HEAD_ESTIMATORS, HESSIAN, PERTURBATION, ROW_PROBES
from .flatness.heads import LARGE_VOCABULARY

# At the head, by a rule that was written down first, over a linear classifier, full fine-tuning and training from
# scratch (recipes/comparison/README.md, "A linear classifier on frozen features, and the default"). The others: of five
# strengths on four small tasks, those that a rule takes which looks at the worst task first, then at the mean
# likelihood (recipes/comparison/plans/first_strengths.yaml).
DEFAULT_LAMBDA = {
    **dict.fromkeys((CLOSED_FORM, ROW_PROBES, PERTURBATION), 0.003),
    **dict.fromkeys((DENSE, HESSIAN, GAUSS_NEWTON), 0.001),
}

# Language models' heads have far larger features: kappa of SmolLM2-135M's is in the thousands, so that 0.003 would be a
# term of several times the loss. Not the outcome of a study.
LARGE_HEAD_LAMBDA = 1e-6


def default_lambda(estimator: str, out_features: int, *, head: bool = False) -> float:
    """The strength that is taken where none is given.

    At the head 0.003. Changes of the metric in points against plain training, on seeds on which it had not been run, in
    brackets the lower end of the one-sided 95 % interval of the task where it is lowest:

    - a linear classifier on frozen mean features, centred as by default: CIFAR-10 +4.46 [+1.82], better than every
      rival; FashionMNIST +2.25 [+0.21], level with weight decay; text, both trainings at learning rates of their own,
      +0.12 over nine tasks [-0.20] (at one rate for all of them +0.43 [-0.36]);
    - full fine-tuning of MiniLM, no gain: Banking77 +0.14 [-0.12], 20 of its classes with a fifth of the labels wrong
      +0.24 [-0.07], sst2 -0.01 [-0.08], CoLA +0.17 [-0.39], MRPC -0.02 [-0.18], RTE +0.11 [-0.09];
    - of EfficientNet-Lite0 on CIFAR-10 +0.90 [+0.10], not significant (p = .07), with a fifth of the labels wrong +2.53
      [+1.60];
    - a small ResNet from scratch: FashionMNIST +0.39 [-0.00], CIFAR-10 +0.45 [-0.46].

    Not shown to be harmless: a linear classifier on the pooler of a frozen BERT, +0.04 [-0.74] (not centred -1.26
    [-2.84]); on the same seeds at learning rates that turned out better, FashionMNIST with EfficientNet-Lite0 +0.54
    [-1.92] and CIFAR-10 from scratch +0.25 [-0.52]. From scratch 0.03 gains more with wrong labels (+1.50 and, at the
    better rate, +1.84), and is not harmless with right ones (-0.41 [-1.05]).

    Not centred, 0.001 gains half as much on text and most of it on CIFAR-10 (+0.41 and +3.72); 0.01 is not harmless
    (CoLA in fine-tuning +0.26 [-0.83]; a linear classifier of images with right labels -1.07 [-1.56]).

    At a hidden layer, with `gauss_newton`, 0.01 gains on frozen embeddings where labels are wrong (+3.80 [+3.41]) and
    classes many (+0.50 [+0.39]), both trainings at learning rates of their own, and nothing with two classes (-0.42 to
    +0.19 [-1.06]); at the pooler of a frozen BERT, centred, 0.003 where labels are wrong (+1.96 [+1.53]; over six
    tasks +0.70 [-0.76], where dropout is level); 0.003 with LoRA and wrong labels (+3.10 and +1.08); 0.03 cost 3.4
    points of Banking77 in full fine-tuning. Their defaults come from four small tasks at one rate, five seeds, by a
    rule that looks at the worst task first: `gauss_newton` +0.37, `hessian` +0.39, `perturbation` (0.003) +1.38;
    `dense` was not run. Sources: recipes/comparison/tables; docs/choosing.md.

    Args:
        estimator: its name.
        out_features: d, which for a head is the number of classes.
        head: whether the layer is the one into the logits, whatever the estimator; above 4096 classes the default is
            10⁻⁶ there, by size and not by a study.

    Examples:
        >>> default_lambda("closed_form", 77), default_lambda("row_probes", 49_152)
        (0.003, 1e-06)
    """
    large = (head or estimator in HEAD_ESTIMATORS) and out_features > LARGE_VOCABULARY
    return LARGE_HEAD_LAMBDA if large else DEFAULT_LAMBDA[estimator]


def is_strength(value: object) -> bool:
    """Whether it is a finite number of at least 0.

    Examples:
        >>> is_strength(0.1), is_strength(-1), is_strength("0.1")
        (True, False, False)
    """
    return isinstance(value, numbers.Real) and 0 <= float(value) < math.inf


@dataclass(frozen=True)
class Strength:
    """lambda as a function of the step.

    Args:
        value: lambda after warm-up.
        warmup_steps: number of steps over which lambda rises linearly.
        max_grad_ratio: upper limit for ``||lambda d kappa|| / ||d loss||`` at the features, or None for no limit. It
            lowers lambda and never raises it: strengths that follow the ratio upwards run away as kappa vanishes.
            While the ratio is not known, in the first step, lambda is 0.

    Examples:
        >>> strength = Strength(0.01, warmup_steps=4, max_grad_ratio=0.5)
        >>> strength.at(0), strength.at(1, unit_ratio=1.0), strength.at(10, unit_ratio=100.0)
        (0.0, 0.005, 0.005)
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
        if self.max_grad_ratio is None:
            return strength
        return min(strength, self.max_grad_ratio / unit_ratio) if unit_ratio else 0.0


def warmup_steps(given: float, total_steps: int) -> int:
    """Warm-up in steps by the Trainer's convention: below 1 it is a fraction of the training.

    Examples:
        >>> warmup_steps(0.1, 50), warmup_steps(7, 50)
        (5, 7)
    """
    return int(given) if given >= 1 else math.ceil(total_steps * given)
