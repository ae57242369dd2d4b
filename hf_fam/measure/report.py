"""The report of ``hf-fam measure``: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .page import escape, html_image, html_list, html_page
from .plotting import item_histogram, layer_profile, robustness_curve
from .results import FlatnessTable, LayerFlatness, bound_sign

if TYPE_CHECKING:
    from .robustness import FeatureRobustness

# The report shows histograms of the layers of largest kappa, at most this many.
_MOST_HISTOGRAMS = 6

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("κ", "kappa"), ("s.e. items", "standard_error_items"), ("s.e. probes", "standard_error_probes"),
    ("κ/m", "kappa_per_feature"), ("κ_max", "kappa_max"), ("layer-wise", "layerwise"), ("‖W‖", "weight_norm"),
    ("Tr H", "hessian_trace"), ("λ_max", "hessian_max_eigenvalue"),
)  # fmt: skip


_LOWER_BOUND_NOTE = "≥: a lower bound. The iterations for the eigenvalue reached their limit before they converged."


def html_report(
    table: FlatnessTable,
    robustness: FeatureRobustness | None,
    *,
    model: str,
    data: str,
    settings: Mapping[str, object],
    command: str,
    notes: Sequence[str] = (),
) -> str:
    """Return the page, with escaped names and embedded figures.

    Args:
        table: the measured layers.
        robustness: the curve of one layer, or None.
        model: name of the model, as the user gave it.
        data: name of the data, as the user gave it.
        settings: settings needed to repeat the measurement, besides the command.
        command: the command line.
        notes: remarks that a reader of the numbers needs.

    Raises:
        ImportError: matplotlib is not installed.
    """
    first = table[0]
    histogram_layers = sorted((r for r in table if len(r.item_kappas) > 1), key=lambda r: -abs(r.kappa))[
        :_MOST_HISTOGRAMS
    ]
    body = [
        f"<h1>Relative flatness of {escape(model)}</h1>",
        f"<p>on {escape(data)}: {first.num_items} items, mean loss {first.loss:.4g}. A small κ is flat.</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        "<h2>Layers</h2>",
        _table(table),
        *([f"<p>{_LOWER_BOUND_NOTE}</p>"] if any(r.not_converged for r in table) else []),
        "<p>κ = Σ ⟨w_s, w_t⟩ Tr H_{s,t}. Standard errors: more items, or more probes, would reduce them. κ_max = Σ "
        "‖w_s‖² λ_max(H_{s,s}); layer-wise = ‖W‖² Tr H. Compare networks only for the same loss, data and kind of "
        "layer.</p>",
        html_image(
            layer_profile(table.records), "κ of every layer, with two standard errors, κ_max and the layer-wise version"
        ),
    ]
    if histogram_layers:
        body.append("<h2>Single items</h2>")
        body.append("<p>κ is a mean over items. A few items may contribute most of it.</p>")
        body += [
            html_image(item_histogram(r), f"Histogram of κ over items for layer {r.layer}") for r in histogram_layers
        ]
    if robustness is not None:
        body.append("<h2>Feature robustness</h2>")
        body.append(
            f"<p>The rise of the loss when the features that enter {escape(robustness.layer)} are perturbed, "
            f"φ → φ + δAφ ({robustness.num_items} items, {robustness.samples} random matrices). "
            f"{escape(robustness.verdict)}</p>"
        )
        body.append(html_image(robustness_curve(robustness), "Measured rise of the loss beside its prediction from κ"))
    body += ["<h2>Settings</h2>", html_list(settings), "<p>Command to repeat it:</p>", f"<pre>{escape(command)}</pre>"]
    return html_page(f"Relative flatness of {model}", body)


def _table(table: FlatnessTable) -> str:
    columns = [(t, n) for t, n in _COLUMNS if any(getattr(r, n) is not None for r in table)]
    head = "".join(f"<th>{title}</th>" for title, _ in [("layer", ""), ("d × m", ""), *columns, ("estimator", "")])
    rows = "\n".join(_row(record, [name for _, name in columns]) for record in table)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _row(record: LayerFlatness, names: Sequence[str]) -> str:
    name = escape(record.layer).replace(".", ".<wbr>")  # long names are broken between their parts
    cells = [f'<td class="name">{name}</td>', f"<td>{record.out_features} × {record.in_features}</td>"]
    for name in names:
        value = getattr(record, name)
        text = "–" if value is None or value != value else f"{bound_sign(record, name, '≥ ')}{value:.4g}"
        cells.append(f"<td>{text}</td>")
    return f"<tr>{''.join(cells)}<td>{escape(record.estimator.replace('_', ' '))}</td></tr>"
