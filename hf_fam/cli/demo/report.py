"""The results of the demo's two runs, as numbers, as a table, in words and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...measure.plotting import Panel

PLAIN, FAM = "Trainer", "FAMTrainer"
PANELS = (
    Panel("train_loss", "training loss", log=True),
    Panel("kappa", "relative flatness κ of the head", log=True),
    Panel("accuracy", "test accuracy"),
)

# Above this training loss, a run has not converged, and kappa and accuracy depend on how far it got.
CONVERGED = 0.1

# Smaller relative changes of kappa count as next to nothing.
NOTABLE = 0.05


def compare(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return kappa of every run at the smallest training loss of all.

    It is the smallest loss that every run has reached.

    Examples:
        >>> a = [{"train_loss": 1.0, "kappa": 8.0}, {"train_loss": 0.01, "kappa": 2.0}]
        >>> b = [{"train_loss": 1.0, "kappa": 6.0}, {"train_loss": 0.1, "kappa": 3.0}]
        >>> compare({"a": a, "b": b})
        {'train_loss': 0.1, 'kappa': {'a': 4.0, 'b': 3.0}}
    """
    common = max(min(record["train_loss"] for record in history) for history in histories.values())
    kappas = {name: float(f"{kappa_at_loss(history, common):.6g}") for name, history in histories.items()}
    return {"train_loss": common, "kappa": kappas}


def kappa_at_loss(history: Sequence[Mapping[str, float]], loss: float) -> float:
    """Return kappa where the training loss first falls to a value.

    Between records, both are interpolated as logarithms.

    Args:
        history: records with ``train_loss`` and ``kappa``, in order.
        loss: not below the smallest loss in the history.
    """
    end = next(k for k, record in enumerate(history) if record["train_loss"] <= loss)
    if end == 0:
        return history[0]["kappa"]
    (x0, y0), (x1, y1) = ((_log(r["train_loss"]), _log(r["kappa"])) for r in history[end - 1 : end + 1])
    return math.exp(y0 + (y1 - y0) * (_log(loss) - x0) / (x1 - x0))


def _log(x: float) -> float:
    return math.log(max(x, 1e-30))


def format_table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    plain, fam = (result["runs"][name] for name in (PLAIN, FAM))
    equal, seconds, used = result["at_equal_loss"], result["step_seconds"], result["fam"]
    kappas, (low, high) = equal["kappa"], seconds["ratio_quartiles"]
    ends = [run["history"][-1]["train_loss"] for run in (plain, fam)]
    rows = [
        ("", PLAIN, FAM, ""),
        ("accuracy", f"{plain['accuracy']:.3f}", f"{fam['accuracy']:.3f}", "higher is better"),
        ("negative log-likelihood", f"{plain['nll']:.3f}", f"{fam['nll']:.3f}", "lower is better"),
        ("expected calibration error", f"{plain['ece']:.3f}", f"{fam['ece']:.3f}", "lower is better, 15 bins"),
        ("relative flatness κ of the head *", f"{kappas[PLAIN]:.4g}", f"{kappas[FAM]:.4g}", "lower is flatter"),
        ("training loss at the end", f"{ends[0]:.4f}", f"{ends[1]:.4f}", ""),
        ("seconds a step", f"{seconds[PLAIN]:.3f}", f"{seconds[FAM]:.3f}", f"ratio {seconds['ratio']:.2f} **"),
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join(
        [
            result["task"]["description"],
            f"FAM: layer {used['layer']}, estimator {used['estimator']}, lambda {used['lambda']:g}",
            "",
            *lines,
            "",
            "*  on the training set, at the smallest loss there that both runs reached (interpolated), "
            f"{equal['train_loss']:.4f}",
            f"** median of {seconds['pairs']} pairs of steps that took turns; quartiles {low:.2f} and {high:.2f}, "
            f"all steps together {seconds['ratio_of_totals']:.2f}",
        ]
    )


def interpret(result: Mapping[str, Any]) -> str:
    """Return a sentence about what the table shows, depending on the numbers."""
    plain, fam = (result["runs"][name] for name in (PLAIN, FAM))
    ends = [run["history"][-1]["train_loss"] for run in (plain, fam)]
    if max(ends) > CONVERGED:
        return "The training loss is still far from zero, so that the runs cannot be compared yet: train for longer."
    kappa = result["at_equal_loss"]["kappa"]
    change = kappa[FAM] / kappa[PLAIN] - 1
    flat = f"κ is {abs(change):.1%} {'lower' if change < 0 else 'higher'} with FAM at equal training loss"
    if abs(change) < NOTABLE:
        flat += ", which is next to nothing"
    difference = fam["accuracy"] - plain["accuracy"]
    error = math.sqrt(sum(p * (1 - p) for p in (plain["accuracy"], fam["accuracy"])) / result["task"]["test_items"])
    points = f"its accuracy differs by {100 * difference:+.1f} points"
    if abs(difference) <= error:
        verdict = f"{points}, which is within the standard error of {100 * error:.1f}: no difference can be seen here"
    elif abs(difference) <= 2 * error:
        verdict = f"{points}, between one and two standard errors of {100 * error:.1f}: no evidence either way"
    else:
        verdict = f"{points}, more than two standard errors of {100 * error:.1f}; but this is one seed of one task"
    return f"{flat}; {verdict}."
