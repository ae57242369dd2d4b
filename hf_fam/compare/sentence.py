"""What a comparison says, in sentences."""

from __future__ import annotations

from .budget import format_time
from .outcome import BETTER, SAME, UNDECIDED, WORSE, MethodResult, Outcome

PLAIN = "plain"


def display_name(name: str) -> str:
    """Return a method as a sentence names it.

    Examples:
        >>> display_name("fam"), display_name("plain"), display_name("weight_decay")
        ('FAM', 'plain training', 'weight decay')
    """
    short = {"fam": "FAM", "sam": "SAM", "ema": "EMA", "neftune": "NEFTune", PLAIN: "plain training"}
    return short.get(name, name.replace("_", " "))


def conclusion(result: Outcome) -> str:
    """Return the sentences below the table."""
    sentences = [method_sentence(result, m) for m in _ordered(result)]
    if result.seeds < 2:
        sentences = ["Undecided: fewer than two seeds are complete, and an interval needs at least two."]
    counts = f"{result.seeds} {'seeds' if result.has_test else 'splits'}, {result.runs} runs, "
    lines = [*sentences, f"{counts}{format_time(result.seconds)}."]
    if result.is_budget_used:
        lines.append("The budget is used; the same command with a larger one carries on.")
    edge = [display_name(m.name) for m in result.methods if m.is_at_edge]
    if edge:
        lines.append(
            f"The best learning rate of {', '.join(edge)} is at the edge of its grid: try another learning_rate."
        )
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
            f"{name} is better than {base} here: {100 * c.probability_of_gain:.0f} % probability of a gain above "
            f"{margin}."
        )
    if method.verdict == WORSE:
        return f"{name} is worse than {base} here: the whole interval is on the side of a loss."
    if method.verdict == SAME:
        return (
            f"{name} and {base} are the same for all practical purposes here: the difference is smaller than {margin}."
        )
    needs = []
    if c.more_seeds is not None:
        needs.append(f"about {c.more_seeds} {'seeds' if result.has_test else 'splits'} more")
    elif c.more_items is not None:
        needs.append(f"about {c.more_items} {'test' if result.has_test else 'labeled'} examples more")
    return f"{name}: undecided{': ' + needs[0] if needs else ''}."


def _ordered(result: Outcome) -> list[MethodResult]:
    order = (BETTER, WORSE, SAME, UNDECIDED)
    sign = -1 if result.metric.higher_is_better else 1
    return sorted(
        result.methods[1:],
        key=lambda m: (order.index(m.verdict), sign * (m.comparison.difference if m.comparison else 0.0)),
    )
