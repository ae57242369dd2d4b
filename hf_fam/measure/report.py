"""The report of ``hf-fam measure``: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .findings import MeasuredModel, findings, shared_layers, tiles
from .page import escape, html_answer, html_figure, html_figures, html_list, html_page, html_table
from .plotting import class_accuracies, item_histogram, layer_profile, robustness_curve
from .results import FlatnessTable, LayerFlatness, bound_sign

if TYPE_CHECKING:
    from .robustness import FeatureRobustness

# The report shows histograms of the layers of largest kappa, at most this many.
_MOST_HISTOGRAMS = 2
_MOST_CLASSES = 12

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("κ", "kappa"), ("s.e. items", "standard_error_items"), ("s.e. probes", "standard_error_probes"),
    ("κ/m", "kappa_per_feature"), ("κ_max", "kappa_max"), ("layer-wise", "layerwise"), ("‖W‖", "weight_norm"),
    ("Tr H", "hessian_trace"), ("λ_max", "hessian_max_eigenvalue"),
)  # fmt: skip

_LOWER_BOUND_NOTE = "≥: a lower bound. The iterations for the eigenvalue reached their limit before they converged."

_FORMULA = (
    "κ = Σ ⟨w_s, w_t⟩ Tr H_{s,t}, summed over all pairs of rows of the layer's weight W. H is the second derivative of "
    "the mean loss. κ_max = Σ ‖w_s‖² λ_max(H_{s,s}), with the largest eigenvalue in place of the trace. It leaves "
    "pairs of different rows out, so it is often smaller than κ. Layer-wise = ‖W‖² Tr H; m is the number of inputs. "
    "If the inputs change at random by a fraction δ, the loss rises by δ²/(2m) κ on average, to second order. For "
    "smaller standard errors, measure more items or more probes. Compare models only for the same loss, data and kind "
    "of layer."
)


def html_report(
    measured: MeasuredModel,
    robustness: FeatureRobustness | None,
    *,
    data: str,
    settings: Mapping[str, object],
    command: str,
    second: MeasuredModel | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the page, with escaped names and embedded figures.

    Args:
        measured: the model and its layers.
        robustness: the curve of one layer, or None.
        data: name of the data, as the user gave it.
        settings: settings needed to repeat the measurement, besides the command.
        command: the command line.
        second: a model to compare with, measured on the same items.
        notes: remarks that a reader of the numbers needs.

    Raises:
        ImportError: matplotlib is not installed.
    """
    title = f"How flat is {measured.name}?"
    table = measured.table
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">Measured on {escape(data)}</p>',
        html_answer(findings(measured, second), tiles(measured)),
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        html_figures(_figures(measured, robustness, second)),
        "<h2>Layers</h2>",
        _layer_table(table),
        *([f"<p>{_LOWER_BOUND_NOTE}</p>"] if any(r.not_converged for r in table) else []),
    ]
    if second is not None:
        body += [f"<h2>Compared with {escape(second.name)}</h2>", _comparison_table(measured, second)]
    body += ["<h2>Settings</h2>", html_list(settings), "<p>Command to repeat it:</p>", f"<pre>{escape(command)}</pre>"]
    body += ["<h2>The formula</h2>", f"<p>{_FORMULA}</p>"]
    return html_page(title, body)


def _figures(measured: MeasuredModel, robustness: FeatureRobustness | None, second: MeasuredModel | None) -> list[str]:
    table = measured.table
    caption = "Bars: two standard errors. To the left is flat. Compare layers of different widths by κ/m, in the table."
    others = () if second is None else second.table.records
    figures = [html_figure(layer_profile(table.records, others), "κ of every layer", caption)]
    if robustness is not None:
        text = (
            f"{robustness.num_items} items, {robustness.samples} random perturbations φ → φ + δAφ, two standard "
            f"errors. {robustness.verdict.replace('delta^2/(2m) kappa', 'δ²/(2m) κ').replace('delta', 'δ')}"
        )
        title = f"The loss when inputs of {robustness.layer} are perturbed"
        figures.append(html_figure(robustness_curve(robustness), title, text))
    if measured.predictions is not None:
        classes = measured.predictions.class_accuracies()
        title = f"The {_MOST_CLASSES} weakest of {len(classes)} classes" if len(classes) > _MOST_CLASSES else "Classes"
        figures.append(
            html_figure(class_accuracies(classes[:_MOST_CLASSES]), title, "Accuracy by class, lowest first.")
        )
    layers = sorted((r for r in table if len(r.item_kappas) > 1), key=lambda r: -abs(r.kappa))
    for record in layers[:_MOST_HISTOGRAMS]:
        title = f"κ over single items, layer {record.layer}"
        figures.append(html_figure(item_histogram(record), title, "A few items may contribute most of the mean."))
    return figures


def _layer_table(table: FlatnessTable) -> str:
    columns = [(t, n) for t, n in _COLUMNS if any(getattr(r, n) is not None for r in table)]
    head = ["layer", "d × m", *(title for title, _ in columns), "estimator"]
    return html_table(head, [_row(record, [name for _, name in columns]) for record in table])


def _row(record: LayerFlatness, names: Sequence[str]) -> list[str]:
    cells = [record.layer, f"{record.out_features} × {record.in_features}"]
    for name in names:
        value = getattr(record, name)
        cells.append("–" if value is None or value != value else f"{bound_sign(record, name, '≥ ')}{value:.4g}")
    return [*cells, record.estimator.replace("_", " ")]


def _comparison_table(measured: MeasuredModel, second: MeasuredModel) -> str:
    rows = [
        [
            one.layer,
            *(f"{r.kappa:.4g} ± {r.standard_error:.2g}" for r in (one, other)),
            f"{one.kappa - other.kappa:+.3g}",
        ]
        for one, other in shared_layers(measured.table, second.table)
    ]
    quality = [["mean loss", f"{measured.loss:.4g}", f"{second.loss:.4g}", f"{measured.loss - second.loss:+.3g}"]]
    if measured.predictions is not None and second.predictions is not None:
        ours, theirs = (100 * p.accuracy for p in (measured.predictions, second.predictions))
        quality.insert(0, ["accuracy, %", f"{ours:.1f}", f"{theirs:.1f}", f"{ours - theirs:+.1f}"])
    return html_table(
        ["", "this model", "second model", "difference"], [*quality, *(["κ of " + r[0], *r[1:]] for r in rows)]
    )
