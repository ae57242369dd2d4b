"""The report of a comparison: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from .._version import __version__
from ..measure.page import escape, html_answer, html_figure, html_figures, html_list, html_page, html_table
from .budget import format_time
from .figures import curve_plot, forest_plot, mean_curve, score_plot
from .outcome import Outcome
from .sentence import conclusion, display_name
from .table import digits, format_difference, format_score, format_settings, time_ratio

# The largest number of scores above the sentences.
_MOST_TILES = 6


def html_report(result: Outcome, *, title: str, command: str) -> str:
    """Return the page.

    Args:
        result: the outcome.
        title: name of the data, as the user gave it.
        command: what repeats the comparison.

    Raises:
        ImportError: matplotlib is not installed.
    """
    body = [
        f"<h1>{escape(title)}: which method?</h1>",
        html_answer(conclusion(result).splitlines(), _tiles(result)),
        "<h2>Differences</h2>",
        _result_table(result),
        f"<p>Intervals: {100 * result.confidence:g} %, corrected for repeated looks and for the number of methods. "
        "Better: the whole interval is on the side of a gain, and a gain above "
        f"{result.margin:g}{result.metric.unit} has a probability of at least 95 %. Same: the whole interval is within "
        f"the margin. ±: standard deviation over the {'seeds' if result.has_test else 'splits'}.</p>",
        html_figures(_figures(result)),
    ]
    body += ["<h2>Tuning</h2>", _tuning(result), "<h2>Cost</h2>", _cost(result)]
    settings = {**result.details, "metric": result.metric.name, "hf_fam": __version__}
    body += ["<h2>Settings</h2>", html_list(settings)]
    if command:
        body += ["<p>Command to repeat it:</p>", f"<pre>{escape(command)}</pre>"]
    return html_page(f"{title}: which method?", body)


def _tiles(result: Outcome) -> list[tuple[str, str]]:
    """Return the mean scores, if they are few."""
    scored = [m for m in result.methods if len(m.scores)]
    unit = " %" if result.metric.scale == 100 else ""
    if not 0 < len(scored) <= _MOST_TILES:
        return []
    return [
        (f"{m.scores.mean():.{digits(result)}f}{unit}", f"{result.metric.name}, {display_name(m.name)}") for m in scored
    ]


def html_result(result: Outcome) -> str:
    """Return the table of the result and its sentences, for a notebook."""
    return _result_table(result) + "".join(f"<p>{escape(line)}</p>" for line in conclusion(result).splitlines())


def _result_table(result: Outcome) -> str:
    head = ("method", result.metric.name, f"minus {result.baseline.name}", "verdict", "NLL", "time")
    rows = [
        (
            m.name,
            format_score(result, m),
            format_difference(result, m),
            m.verdict if m.comparison is not None else "-",
            "-" if m.nll is None else f"{m.nll:.3f}",
            time_ratio(result, m),
        )
        for m in result.methods
    ]
    single = "<p>Intervals need at least two seeds.</p>" if all(m.comparison is None for m in result.methods) else ""
    return html_table(head, rows) + single


def _figures(result: Outcome) -> list[str]:
    figures = []
    if any(m.comparison is not None for m in result.methods):
        title = f"Difference of each method from {result.baseline.name}, with its interval"
        figures.append(html_figure(forest_plot(result), title, "Gray: differences within the margin."))
    figures.append(
        html_figure(
            score_plot(result),
            f"Every final run: {result.metric.name} by method",
            "A line is a seed: the same initial weights, order and examples for every method.",
        )
    )
    if any(mean_curve(m) is not None for m in result.methods):
        caption = (
            "Mean over the final runs of the training loss that each method logs. Compare heights only between methods "
            "that have the same loss; FAM logs it without its term. Validation data is not read during a run."
        )
        figures.append(html_figure(curve_plot(result), "Mean training loss by epoch, for each method", caption))
    return figures


def _tuning(result: Outcome) -> str:
    rows = []
    for m in result.methods:
        for settings, score in m.tried:
            times = sum(chosen == settings for chosen in m.chosen)
            mark = "chosen" if times and len(m.chosen) == 1 else f"{times} of {len(m.chosen)} splits" if times else ""
            rows.append((m.name, format_settings(settings), f"{score:.{digits(result)}f}", mark))
    if not rows:
        return "<p>Nothing was tuned.</p>"
    fixed = [m.name for m in result.methods if not m.tried]
    text = "<p>Every method of this table had equally many settings to choose from, by the score on validation data."
    text += f" Not tuned here: {escape(', '.join(fixed))}.</p>" if fixed else "</p>"
    return text + html_table(("method", "setting", f"validation {result.metric.name}", ""), rows)


def _cost(result: Outcome) -> str:
    rows = [(m.name, format_time(m.seconds), time_ratio(result, m)) for m in result.methods]
    total = f"<p>{result.runs} runs; this call took {format_time(result.seconds)}.</p>"
    return html_table(("method", "a run", f"relative to {result.baseline.name}"), rows) + total
