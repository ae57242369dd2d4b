"""Figures; matplotlib is imported by the functions that draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..inputs.packages import optional_packages

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import SymmetricalLogLocator


class _MeasuredLayer(Protocol):
    """The attributes of a layer that are drawn, see `hf_fam.measure.LayerFlatness`."""

    @property
    def layer(self) -> str: ...
    @property
    def kappa(self) -> float: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def kappa_max(self) -> float | None: ...
    @property
    def layerwise(self) -> float | None: ...
    @property
    def item_kappas(self) -> Sequence[float]: ...


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


def layer_profile(records: Sequence[_MeasuredLayer]) -> Figure:
    """Draw kappa of every layer with twice its standard error.

    kappa_max and the layer-wise version are drawn for layers where they are known.

    Args:
        records: one record for each layer.
    """
    figure = new_figure(4.8, 1.4 + 0.3 * len(records))
    axes = figure.subplots()
    rows = range(len(records))
    kappas = [r.kappa for r in records]
    errors = [2 * r.standard_error if r.standard_error == r.standard_error else 0.0 for r in records]
    axes.errorbar(kappas, rows, xerr=errors, fmt="o", color="C0", capsize=3, label="κ ± 2 standard errors")
    others = (("kappa_max", "s", "κ_max"), ("layerwise", "^", "layer-wise, ‖W‖² Tr H"))
    for k, (name, marker, label) in enumerate(others, 1):
        points = [(getattr(r, name), row) for row, r in enumerate(records) if getattr(r, name) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), marker, color=f"C{k}", fillstyle="none", linestyle="none", label=label
            )
    # Small layers are indistinguishable on a linear scale, so negative values take a symmetric logarithmic one.
    values = [v for r in records for v in (r.kappa, r.kappa_max, r.layerwise) if v is not None]
    axes.set(yticks=list(rows), yticklabels=[_escape_formula(r.layer) for r in records])
    axes.set(xlabel="a small value is flat", ylim=(len(records) - 0.5, -0.5))
    if min(values) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=_linear_threshold(values))
        axes.xaxis.set_major_locator(_few_ticks(values))
        axes.axvline(0, color="gray", linewidth=0.8)
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure


def item_histogram(record: _MeasuredLayer) -> Figure:
    """Draw the distribution of kappa over single items.

    Args:
        record: record of a layer whose items are not coupled.
    """
    figure = new_figure(4.8, 2.8)
    axes = figure.subplots()
    axes.hist(record.item_kappas, bins=40, color="C0")
    axes.axvline(record.kappa, color="C3", linestyle="--", label=f"mean, κ = {record.kappa:.3g}")
    axes.set(xlabel="κ of a single item", ylabel="items")
    axes.locator_params(axis="x", nbins=4)
    axes.set_title(_escape_formula(record.layer), fontsize="medium", wrap=True)
    axes.legend()
    return figure


def robustness_curve(curve: _MeasuredRobustness) -> Figure:
    """Draw the measured rise of the loss beside ``delta^2/(2m) kappa``.

    The measured rise has error bars of twice its standard error.

    Args:
        curve: the measured curve.
    """
    figure = new_figure(4.8, 3.4)
    axes = figure.subplots()
    errors = [2 * e for e in curve.standard_errors]
    axes.errorbar(curve.deltas, curve.measured, yerr=errors, fmt="o", capsize=3, label="measured ± 2 standard errors")
    axes.plot(curve.deltas, curve.predicted, "--", color="C3", label="δ²/(2m) κ")
    positive = min(*curve.measured, *curve.predicted) > 0
    axes.set(xscale="log", xlabel="δ, relative size of the perturbation")
    axes.set(ylabel="rise of the loss")
    axes.set_title(f"{_escape_formula(curve.layer)}\n{curve.matrices.replace('_', ' ')} matrices", fontsize="medium")
    if positive:
        axes.set_yscale("log")
    else:
        values = [*curve.measured, *curve.predicted]
        axes.set_yscale("symlog", linthresh=_linear_threshold(values))
        axes.yaxis.set_major_locator(_few_ticks(values))
    if curve.diverges_at is not None:
        axes.axvline(curve.diverges_at, color="gray", linestyle=":", label="they diverge here")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _linear_threshold(values: Sequence[float]) -> float:
    """Return where a scale for values of both signs turns from log to linear."""
    return max(map(abs, values)) * 1e-3 or 1e-12


def _few_ticks(values: Sequence[float]) -> SymmetricalLogLocator:
    from matplotlib.ticker import SymmetricalLogLocator

    locator = SymmetricalLogLocator(base=10, linthresh=_linear_threshold(values))
    locator.set_params(numticks=5)
    return locator


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, without pyplot.

    So no display is needed, and the caller's own figures stay as they are.
    """
    with optional_packages("drawing", "measure"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, whose extension selects the format."""
    figure.savefig(path, dpi=150)


def _escape_formula(name: str) -> str:
    """Escape dollar signs, which matplotlib would read as a formula."""
    return name.replace("$", r"\$")


def _styles(count: int) -> list[str]:
    """Return line styles that differ without color too."""
    return [["-", "--", ":", "-."][k % 4] for k in range(count)]
