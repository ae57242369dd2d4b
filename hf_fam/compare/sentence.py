"""What a comparison says, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .budget import format_time
from .outcome import BETTER, SAME, UNDECIDED, WORSE, MethodResult, Outcome
from .statistics.advice import MOST_SEEDS

# Names that are not those of the flags with spaces.
NAMES = {
    "plain": "plain training", "fam": "FAM", "sam": "SAM", "ema": "EMA", "neftune": "NEFTune",
    "momentum_sam": "momentum SAM",
    "bi_tempered": "bi-tempered loss", "generalized_cross_entropy": "generalized cross-entropy",
    "symmetric_cross_entropy": "symmetric cross-entropy",
}  # fmt: skip


def display_name(name: str) -> str:
    """Return a method as a sentence names it.

    Examples:
        >>> display_name("fam"), display_name("bi_tempered"), display_name("weight_decay")
        ('FAM', 'bi-tempered loss', 'weight decay')
    """
    return NAMES.get(name, name.replace("_", " "))


def conclusion(result: Outcome) -> str:
    """Return the sentences below the table."""
    sentences = [method_sentence(result, m) for m in result.methods[1:]]
    if result.seeds < 2:
        missing = f", about {format_time(result.seconds_missing)} more" if result.seconds_missing else ""
        sentences = [f"Undecided: fewer than two seeds are complete, and an interval needs at least two{missing}."]
    if result.seeds >= 2 and result.best is result.baseline:
        base = display_name(result.baseline.name)
        undecided = [display_name(m.name) for m in result.methods[1:] if m.verdict == UNDECIDED]
        advice = ", so a final model is best trained by that."
        if undecided:
            verb, subject = ("is", "it") if len(undecided) == 1 else ("are", "each")
            advice = f". {_listed(undecided)} {verb} undecided, so {subject} may be better or worse."
        sentences.append(f"Nothing was shown to be better than {base}{advice}")
    counts = f"{result.seeds} {_plural(result.seeds, 'seed' if result.has_test else 'split')}, {result.runs} runs, "
    lines = [*sentences, f"{counts}{format_time(result.seconds)}."]
    if result.is_budget_used:
        lines.append("The budget is used; the same command with a larger one carries on.")
    for field, advice in (("learning rate", "try another learning_rate"), ("strength", "try another strength")):
        names = [display_name(m.name) for m in result.methods if field in m.edges]
        if names:
            lines.append(f"The best {field} of {', '.join(names)} is at the edge of its grid: {advice}.")
    diverged = [f"{m.diverged} of {display_name(m.name)}" for m in result.methods if m.diverged]
    if diverged:
        lines.append(f"Diverged runs, which count with their score: {', '.join(diverged)}.")
    return "\n".join(lines)


def method_sentence(result: Outcome, method: MethodResult) -> str:
    """Return one sentence about a method and the baseline."""
    name, base = display_name(method.name), display_name(result.baseline.name)
    name = name[0].upper() + name[1:]
    c, unit = method.comparison, result.metric.unit
    if c is None:
        return f"{name}: undecided."
    margin = f"{result.margin:g}{unit}"
    if method.verdict == BETTER:
        return (
            f"{name} is better than {base} here: {percent(c.probability_of_gain)} probability of a gain above {margin}."
        )
    if method.verdict == WORSE:
        return f"{name} is worse than {base} here: the whole interval is on the side of a loss."
    if method.verdict == SAME:
        return (
            f"{name} and {base} are the same for all practical purposes here: the difference is smaller than {margin}."
        )
    needs = []
    if c.more_seeds is not None:
        needs.append(f"{c.more_seeds} more {_plural(c.more_seeds, 'seed' if result.has_test else 'split')}")
    if c.more_items is not None:
        kind = "test example" if result.has_test else "labeled example"
        needs.append(f"{c.more_items:,} more {_plural(c.more_items, kind)}")
    if not needs:
        return f"{name}: undecided; {_what_limits(result, method, c.high - c.low)}"
    return f"{name}: undecided; about {' and '.join(needs)} may decide it."


def _what_limits(result: Outcome, method: MethodResult, width: float) -> str:
    """Return why an interval is too wide: for want of test examples, or because runs vary.

    Args:
        result: the outcome.
        method: a method that is undecided.
        width: of its interval.
    """
    between_seeds = float(np.std(method.scores - result.baseline.scores)) / math.sqrt(result.seeds)
    if result.has_test and 8 * between_seeds < width:  # a quarter of half the width
        times = float(f"{(width / 2 / result.margin) ** 2:.2g}")
        if times > 1:
            return (
                "the test examples are too few, and more seeds do not help. About "
                f"{times:,.0f} times as many would narrow the interval to ± {result.margin:g}{result.metric.unit}."
            )
    return f"even {MOST_SEEDS} more {'seeds' if result.has_test else 'splits'} would probably not decide it."


def _listed(names: Sequence[str]) -> str:
    """Return names as the beginning of a sentence has them."""
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return text[0].upper() + text[1:]


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def percent(probability: float) -> str:
    """Return a probability as people say it; none that is estimated is 100 %.

    Examples:
        >>> percent(0.968), percent(0.9999)
        ('97 %', 'more than 99 %')
    """
    return "more than 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"
