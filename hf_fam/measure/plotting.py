"""Figures; matplotlib is imported by the functions that draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..inputs.packages import optional_packages
from .measured_layer import MeasuredLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import SymmetricalLogLocator

# The colors of every figure; a page replaces them by those of its theme. Okabe and Ito (2008): they remain apart for
# the color-blind.
PALETTE = {
    "ink": "#1b1f24", "muted": "#57606a", "line": "#d0d7de", "paper": "#ffffff", "panel": "#f8fafb", "wash": "#e8ebef",
    "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "pink": "#cc79a7", "yellow": "#e69f00",
    "sky": "#56b4e9", "lemon": "#c9bd1c",
}  # fmt: skip
# The colors of several lines, in order.
LINE_COLORS = tuple(PALETTE[c] for c in ("ink", "blue", "orange", "green", "pink", "yellow", "sky", "lemon"))
# Inches; at this width text is legible on a phone.
WIDTH = 4.8


class _MeasuredRobustness(Protocol):
    """The attributes of a robustness curve that are drawn, see `hf_fam.measure.robustness.FeatureRobustness`."""

    @property
    def layer(self) -> str: ...
    @property
    def matrices(self) -> str: ...
    @property
    def deltas(self) -> Sequence[float]: ...
    @property
    def measured(self) -> Sequence[float]: ...
    @property
    def standard_errors(self) -> Sequence[float]: ...
    @property
    def predicted(self) -> Sequence[float]: ...
    @property
    def diverges_at(self) -> float | None: ...


@dataclass(frozen=True)
class Panel:
    """One coordinate system of a figure.

    Attributes:
        key: name of the quantity in the records.
        title: the title of the panel.
        log: draw it on a logarithmic scale.
    """

    key: str
    title: str
    log: bool = False


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, float]]], panels: Sequence[Panel], path: str | Path, x: str = "step"
) -> None:
    """Draw quantities of several training runs side by side.

    Each quantity has a panel, and each run a line.

    Args:
        runs: the records of each run, in order, by the name of the run. Records without a quantity or without x are
            skipped.
        panels: the quantities to draw.
        path: the file to write. Its extension selects the format.
        x: name of the quantity on the horizontal axis.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: no record of a run contains a quantity together with x.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "runs.png")
        >>> plot_runs({"a run": [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}]}, [Panel("loss", "loss")], path)
        >>> path.exists()
        True
    """
    figure = new_figure(4.2 * len(panels), 3.4)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, records), style in zip(runs.items(), _styles(len(runs)), strict=True):
            points = [(r[x], r[panel.key]) for r in records if x in r and panel.key in r]
            if not points:
                known = ", ".join(sorted({key for r in records for key in r})) or "nothing"
                if any(panel.key in r for r in records):
                    raise TypeError(f"no record of '{name}' with '{panel.key}' contains x='{x}' too, only {known}.")
                raise TypeError(f"no record of '{name}' contains '{panel.key}', only {known}: leave its panel out.")
            axes.plot(*zip(*points, strict=True), style, label=name)
        axes.set(title=panel.title, xlabel=x, yscale="log" if panel.log else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    save(figure, path)


def layer_profile(records: Sequence[MeasuredLayer], second: Sequence[MeasuredLayer] = ()) -> Figure:
    """Draw kappa of every layer with twice its standard error.

    kappa_max and the layer-wise version are drawn for layers where they are known, without a second model.

    Args:
        records: one record for each layer.
        second: the layers of a second model; those with the names of the first are drawn.
    """
    figure, axes = new_axes(1.2 + 0.32 * len(records))
    _draw_kappas(axes, [(row, r) for row, r in enumerate(records)], "blue", "o", "κ" if not second else "this model")
    names = [r.layer for r in records]
    shared = [(names.index(r.layer) + 0.22, r) for r in second if r.layer in names]
    if shared:
        _draw_kappas(axes, shared, "orange", "D", "second model")
    others = (("kappa_max", "s", "green", "κ_max"), ("layerwise", "^", "pink", "layer-wise"))
    for name, marker, color, label in () if second else others:
        points = [(getattr(r, name), row) for row, r in enumerate(records) if getattr(r, name) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=PALETTE[color], fillstyle="none", linestyle="none", label=label)
    # Small layers are indistinguishable on a linear scale, so negative values take a symmetric logarithmic one.
    drawn = [*records, *(r for _, r in shared)]
    values = [
        v for r in drawn for v in ((r.kappa,) if second else (r.kappa, r.kappa_max, r.layerwise)) if v is not None
    ]
    axes.set(yticks=[*range(len(records))], yticklabels=[_escape_formula(short_name(n)) for n in names])
    axes.set(xlabel="← flat      κ      sharp →", ylim=(len(records) - 0.4, -0.6))
    if min(values) > 0:
        axes.set_xscale("log")
        _label_few(axes, min(values), max(values))
    else:
        axes.set_xscale("symlog", linthresh=_linear_threshold(values))
        axes.xaxis.set_major_locator(_few_ticks(values))
        axes.axvline(0, color=PALETTE["muted"], linewidth=0.8)
    axes.grid(axis="x", alpha=0.6)
    if shared or any(v is not None for r in records for v in (r.kappa_max, r.layerwise)):
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _label_few(axes: Axes, smallest: float, largest: float) -> None:
    """Label a logarithmic axis at numbers that have room, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    subs = (1, 2, 5) if largest < 30 * smallest else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_kappas(axes: Axes, rows: Sequence[tuple[float, MeasuredLayer]], color: str, marker: str, label: str) -> None:
    errors = [2 * r.standard_error if r.standard_error == r.standard_error else 0.0 for _, r in rows]
    kappas, places = [r.kappa for _, r in rows], [row for row, _ in rows]
    axes.errorbar(kappas, places, xerr=errors, fmt=marker, color=PALETTE[color], capsize=3, label=label)


def item_histogram(record: MeasuredLayer) -> Figure:
    """Draw the distribution of kappa over single items.

    Args:
        record: record of a layer whose items are not coupled.
    """
    figure, axes = new_axes(2.4)
    axes.hist(record.item_kappas, bins=40, color=PALETTE["blue"])
    axes.axvline(record.kappa, color=PALETTE["orange"], linestyle="--", label=f"mean, κ = {record.kappa:.3g}")
    axes.set(xlabel="κ of a single item", ylabel="items")
    axes.locator_params(axis="x", nbins=4)
    axes.legend(frameon=False)
    return figure


def class_accuracies(accuracies: Sequence[tuple[str, float]]) -> Figure:
    """Draw the accuracy of classes as bars.

    Args:
        accuracies: name and accuracy, from 0 to 1, of each class to draw.
    """
    figure, axes = new_axes(0.7 + 0.28 * len(accuracies))
    rows = range(len(accuracies))
    axes.barh(rows, [100 * a for _, a in accuracies], color=PALETTE["blue"], height=0.62)
    for row, (_, accuracy) in enumerate(accuracies):
        end = (100 * accuracy, row)
        text = f"{100 * accuracy:.0f} %"
        axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set(yticks=[*rows], yticklabels=[_escape_formula(short_name(name)) for name, _ in accuracies])
    axes.set(xlim=(0, 112), xticks=[0, 25, 50, 75, 100], xlabel="right, %", ylim=(len(accuracies) - 0.4, -0.6))
    return figure


def robustness_curve(curve: _MeasuredRobustness) -> Figure:
    """Draw the measured rise of the loss beside ``delta^2/(2m) kappa``.

    The measured rise has error bars of twice its standard error.

    Args:
        curve: the measured curve.
    """
    figure, axes = new_axes(2.9)
    errors = [2 * e for e in curve.standard_errors]
    axes.errorbar(
        curve.deltas, curve.measured, yerr=errors, fmt="o", color=PALETTE["blue"], capsize=3, label="measured"
    )
    axes.plot(curve.deltas, curve.predicted, "--", color=PALETTE["orange"], label="predicted, δ²/(2m) κ")
    positive = min(*curve.measured, *curve.predicted) > 0
    axes.set(xscale="log", xlabel="δ, relative size of the perturbation")
    axes.set(ylabel="rise of the loss")
    if positive:
        axes.set_yscale("log")
    else:
        values = [*curve.measured, *curve.predicted]
        axes.set_yscale("symlog", linthresh=_linear_threshold(values))
        axes.yaxis.set_major_locator(_few_ticks(values))
    if curve.diverges_at is not None:
        axes.axvline(curve.diverges_at, color=PALETTE["muted"], linestyle=":", label="they diverge here")
    axes.grid(alpha=0.6)
    axes.legend(frameon=False)
    return figure


def short_name(name: str, length: int = 28) -> str:
    """Return a name for an axis: its end, where names of layers differ.

    Examples:
        >>> short_name("bert.encoder.layer.11.attention.output.dense")
        '…11.attention.output.dense'
    """
    if len(name) <= length:
        return name
    end = name[-length + 1 :]
    return "…" + (end.split(".", 1)[1] if "." in end else end)


def _linear_threshold(values: Sequence[float]) -> float:
    """Return where a scale for values of both signs turns from log to linear."""
    return max(map(abs, values)) * 1e-3 or 1e-12


def _few_ticks(values: Sequence[float]) -> SymmetricalLogLocator:
    from matplotlib.ticker import SymmetricalLogLocator

    locator = SymmetricalLogLocator(base=10, linthresh=_linear_threshold(values))
    locator.set_params(numticks=5)
    return locator


def new_figure(width: float, height: float, extra: str = "measure") -> Figure:
    """Return an empty figure, sizes in inches, without pyplot.

    So no display is needed, and the caller's own figures stay as they are.
    """
    with optional_packages("drawing", extra):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(height: float, extra: str = "measure") -> tuple[Figure, Axes]:
    """Return a figure with one coordinate system in the style of the reports, its height in inches."""
    figure = new_figure(WIDTH, height, extra)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")
    axes.tick_params(labelsize="small")
    return figure, axes


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, whose extension selects the format."""
    figure.savefig(path, dpi=150)


def _escape_formula(name: str) -> str:
    """Escape dollar signs, which matplotlib would read as a formula."""
    return name.replace("$", r"\$")


def _styles(count: int) -> list[str]:
    """Return line styles that differ without color too."""
    return [["-", "--", ":", "-."][k % 4] for k in range(count)]
