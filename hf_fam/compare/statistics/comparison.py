"""Compare methods with a baseline, seed by seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .advice import Design, advise
from .constant import ConstantDifferences
from .crossed import CrossedDifferences
from .holm import levels
from .one_score import SeedDifferences
from .scores import Differences, Scores, check_scores, paired_differences
from .spending import DEFAULT_LOOKS
from .verdict import Verdict, decide

# Differences that vary less than this, relative to the scores, vary by rounding only.
ROUNDING = 1e-10


@dataclass(frozen=True)
class Comparison:
    """What is known of one method's difference from the baseline.

    Attributes:
        difference: mean score of the method minus that of the baseline.
        low: lower end of the interval of the difference. Over all looks and methods, the interval of a method that
            equals the baseline leaves zero out with a probability of at most 1 - confidence.
        high: upper end.
        probability_of_gain: P(gain > margin), the gain being the difference in the direction that is better. It is
            ``P(T <= (gain - margin) / standard error)`` with Student's t and Satterthwaite's degrees of freedom: the
            posterior probability under a flat prior. It is not corrected for looks and methods; the interval is.
        verdict: see `Verdict`.
        more_seeds: number of further seeds that decide with a probability of about one half, while undecided.
        more_items: number of further test items; of labeled examples in all with repeated splits.
        degrees_of_freedom: of the standard error.
    """

    difference: float
    low: float
    high: float
    probability_of_gain: float
    verdict: Verdict
    more_seeds: int | None
    more_items: int | None
    degrees_of_freedom: float


def compare_methods(
    scores: Mapping[str, Scores],
    *,
    baseline: str,
    margin: float,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    look: int = 0,
    looks: Sequence[int] = DEFAULT_LOOKS,
    test_to_train_ratio: float | None = None,
    examples: int | None = None,
) -> dict[str, Comparison]:
    """Compare every method with the baseline.

    Args:
        scores: by method, the baseline included; all with the same seeds and items in the same order.
        baseline: its name.
        margin: differences of the score up to it make no practical difference; 0.005 for half a point of accuracy.
        higher_is_better: False for a loss.
        confidence: probability that no equal method is called different, over all looks and all methods.
        look: index of this look. Every time that somebody may stop or carry on after having seen the scores is a look.
        looks: number of seeds at each look, ascending. Those before this one matter; for this one the number of seeds
            in ``scores`` does, so that a budget may end between two looks.
        test_to_train_ratio: number of test examples by number of training examples in each of several random splits of
            the same data; None for one test file.
        examples: with repeated splits, how many labeled examples there are in all; for advice.

    Returns:
        For each method but the baseline, in the order of ``scores``, its comparison.

    Raises:
        ValueError: something cannot be compared; the message says what.

    Example:
        >>> plain, fam = Scores([0.811, 0.804, 0.808, 0.802, 0.810]), Scores([0.832, 0.824, 0.827, 0.825, 0.831])
        >>> result = compare_methods({"plain": plain, "fam": fam}, baseline="plain", margin=0.005, look=1)["fam"]
        >>> print(f"{result.difference:+.3f} ({result.low:+.3f} to {result.high:+.3f}): {result.verdict}")
        +0.021 (+0.018 to +0.024): better
    """
    check_scores(scores, baseline, test_to_train_ratio is not None)
    looks_so_far = _looks_so_far(look, looks, len(scores[baseline].values))
    _check_settings(margin, confidence, test_to_train_ratio, examples)
    sign = 1.0 if higher_is_better else -1.0
    reference = Scores(sign * scores[baseline].values)
    designs = {
        name: _design(paired_differences(Scores(sign * one.values), reference), test_to_train_ratio, examples)
        for name, one in scores.items()
        if name != baseline
    }
    gains = {name: design.estimate() for name, design in designs.items()}
    level = levels(gains, looks_so_far, 1 - confidence)
    widths = {name: gain.half_width(level[name]) for name, gain in gains.items()}
    verdicts = {name: decide(gain, widths[name], margin) for name, gain in gains.items()}
    share = (1 - confidence) / max(sum(verdict is Verdict.UNDECIDED for verdict in verdicts.values()), 1)
    results = {}
    for name, gain in gains.items():
        undecided = verdicts[name] is Verdict.UNDECIDED
        more_seeds, more_items = advise(designs[name], margin, looks_so_far, share) if undecided else (None, None)
        difference, width = sign * gain.difference, widths[name]
        results[name] = Comparison(
            difference=difference,
            low=difference - width,
            high=difference + width,
            probability_of_gain=gain.probability_above(margin),
            verdict=verdicts[name],
            more_seeds=more_seeds,
            more_items=more_items,
            degrees_of_freedom=gain.degrees_of_freedom,
        )
    return results


def _design(differences: Differences, test_to_train_ratio: float | None, examples: int | None) -> Design:
    values = differences.values
    seeds, items = len(values), values.shape[1] if values.ndim == 2 else None
    if float(values.max() - values.min()) <= ROUNDING * differences.magnitude:
        constant = float(values.mean())
        reach = differences.spread + abs(constant)
        return ConstantDifferences(constant, reach, seeds, items, test_to_train_ratio)
    if items is not None:
        return CrossedDifferences.of(values)
    return SeedDifferences.of(values, test_to_train_ratio, examples)


def _looks_so_far(look: int, looks: Sequence[int], seeds: int) -> tuple[int, ...]:
    ascending = all(a < b for a, b in itertools.pairwise(looks)) and all(n >= 1 for n in looks)
    if not ascending:
        raise ValueError(f"looks={tuple(looks)}: give numbers of seeds, at least 1, each larger than the one before.")
    if not 0 <= look < len(looks):
        raise ValueError(f"look={look}: there are {len(looks)} looks, counted from 0.")
    # A look without a new seed, because the budget ended, repeats the look before it.
    return (*(n for n in looks[:look] if n < seeds), seeds)


def _check_settings(margin: float, confidence: float, ratio: float | None, examples: int | None) -> None:
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin={margin!r}: give a difference of the score that does not matter, zero or positive.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: give a probability between 0 and 1, such as 0.95.")
    if ratio is not None and not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(
            f"test_to_train_ratio={ratio!r}: give the number of test examples divided by that of training examples."
        )
    if examples is not None and examples < 2:
        raise ValueError(f"examples={examples!r}: give the number of labeled examples, at least 2.")
