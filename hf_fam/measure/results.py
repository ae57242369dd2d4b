"""Results of a measurement: one record for each layer, as a table, JSON, pandas or a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

from ..inputs.packages import optional_packages
from .items_needed import RELATIVE_ERROR, items_needed, items_needed_notes


@dataclass(frozen=True)
class LayerFlatness:
    """Relative flatness of one layer over a data set. A *small* kappa is *flat*.

    Attributes:
        layer: dotted name.
        kappa: relative flatness, in the units of the loss.
        standard_error: standard error of kappa as an estimate for the population from which the items were drawn. It
            contains the errors of items and of probes. NaN for a single item.
        standard_error_items: the part that more items would reduce. NaN for a single item, and where the error of the
            probes hides it.
        standard_error_probes: the part that more probes would reduce; 0 if kappa is exact. It is the whole error of
            kappa for exactly these items. NaN for a single probe.
        kappa_max: ``sum_s ||w_s||^2 lambda_max(H_ss)``, with the largest eigenvalue in place of the trace and without
            pairs of different rows, so it is often smaller than kappa; None if it was not measured.
        layerwise: ``||W||_F^2 Tr H``; None if it was not measured.
        hessian_trace: Tr H of the layer's weight; None if ``layerwise`` was not measured.
        hessian_trace_error: standard error of Tr H, from items and probes.
        hessian_max_eigenvalue: the largest eigenvalue of the layer's whole Hessian; None if it was not measured.
        weight_norm: ``||W||_F``, of the normalized weight if features were normalized.
        in_features: m.
        out_features: d.
        num_items: number of measured items with a label.
        loss: their mean loss, without weight decay.
        estimator: ``"closed_form"`` (exact), ``"hessian"`` or ``"gauss_newton"``.
        coupling: which rows of pre-activations the loss couples: ``"rows"`` (none), ``"items"`` or ``"batch"``.
        probes: random directions for each batch; 0 if kappa is exact.
        products: number of Hessian-vector products of a batch, without the few that look for coupled rows.
        seconds: time for this layer, and its share of the forward passes.
        item_kappas: kappa of single items, a random 4096 of them at most; empty if items are coupled.
        not_converged: which of ``"kappa_max"`` and ``"hessian_max_eigenvalue"`` are only lower bounds, because their
            Lanczos iterations reached the limit before they converged. Tables show them with ``>=``.
    """

    layer: str
    kappa: float
    standard_error: float
    standard_error_items: float
    standard_error_probes: float
    kappa_max: float | None
    layerwise: float | None
    hessian_trace: float | None
    hessian_trace_error: float | None
    hessian_max_eigenvalue: float | None
    weight_norm: float
    in_features: int
    out_features: int
    num_items: int
    loss: float
    estimator: str
    coupling: str
    probes: int
    products: int
    seconds: float
    item_kappas: tuple[float, ...] = field(default=(), repr=False)
    not_converged: tuple[str, ...] = ()

    @property
    def kappa_per_feature(self) -> float:
        """Return kappa / m.

        ``delta^2 / 2`` times it is the expected rise of the loss, see `hf_fam.measure.robustness`.
        """
        return self.kappa / self.in_features

    def items_needed(self, relative_error: float = RELATIVE_ERROR) -> int | None:
        """Return about how many items give kappa with a relative standard error.

        None if fewer will do, or if more probes would reduce the error more than more items.

        Args:
            relative_error: the wanted standard error, as a fraction of kappa.
        """
        return items_needed(self, relative_error)

    def _repr_html_(self) -> str:
        """Return the record as a table for a notebook."""
        return FlatnessTable([self], {})._repr_html_()


_COLUMNS = (
    ("layer", "layer"),
    ("d x m", ""),
    ("kappa", "kappa"),
    ("s.e. (items)", "standard_error_items"),
    ("s.e. (probes)", "standard_error_probes"),
    ("kappa/m", "kappa_per_feature"),
    ("kappa_max", "kappa_max"),
    ("layer-wise", "layerwise"),
    ("||W||", "weight_norm"),
    ("Tr H", "hessian_trace"),
    ("lambda_max", "hessian_max_eigenvalue"),
    ("estimator", "estimator"),
    ("seconds", "seconds"),
)


class FlatnessTable(Sequence[LayerFlatness]):
    """The measured layers, in the order in which they were named.

    Args:
        records: one record for each layer.
        settings: the settings of the measurement.

    Examples:
        >>> record = LayerFlatness(
        ...     "head",
        ...     2.0,
        ...     0.1,
        ...     0.1,
        ...     0.0,
        ...     None,
        ...     None,
        ...     None,
        ...     None,
        ...     None,
        ...     1.5,
        ...     4,
        ...     3,
        ...     60,
        ...     0.7,
        ...     "closed_form",
        ...     "rows",
        ...     0,
        ...     0,
        ...     0.25,
        ... )
        >>> table = FlatnessTable([record], {"normalize_features": False})
        >>> table[0].kappa, table["head"].kappa_per_feature
        (2.0, 0.5)
        >>> print(table)
        60 items, mean loss 0.7; a small kappa is flat
        <BLANKLINE>
        layer  d x m  kappa  s.e. (items)  s.e. (probes)  kappa/m  ||W||  estimator    seconds
        head   3 x 4      2           0.1              0      0.5    1.5  closed_form     0.25
    """

    def __init__(self, records: Sequence[LayerFlatness], settings: dict[str, Any]) -> None:
        self.records, self.settings = tuple(records), settings

    @overload
    def __getitem__(self, key: int | str) -> LayerFlatness: ...
    @overload
    def __getitem__(self, key: slice) -> FlatnessTable: ...
    def __getitem__(self, key: int | str | slice) -> LayerFlatness | FlatnessTable:
        """Return a record by its number or by the name of its layer."""
        if isinstance(key, slice):
            return FlatnessTable(self.records[key], self.settings)
        if isinstance(key, int):
            return self.records[key]
        for record in self.records:
            if record.layer == key:
                return record
        raise KeyError(f"{key!r} was not measured: choose one of {', '.join(r.layer for r in self.records)}")

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[LayerFlatness]:
        return iter(self.records)

    def _rows(self) -> list[list[str]]:
        """Return the titles of the columns, and the cells of each layer."""
        columns = [c for c in _COLUMNS if not c[1] or any(_value(r, c[1]) is not None for r in self.records)]
        rows = [[title for title, _ in columns]]
        for record in self.records:
            size = f"{record.out_features} x {record.in_features}"
            rows.append(
                [bound_sign(record, name) + _cell(_value(record, name)) if name else size for _, name in columns]
            )
        return rows

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        from .page import html_table

        head, *rows = self._rows()
        return f"<p>{self._caption}</p>{html_table(head, rows)}"

    @property
    def _caption(self) -> str:
        first = self.records[0]
        return f"{first.num_items} items, mean loss {first.loss:.4g}; a small kappa is flat"

    def __str__(self) -> str:
        rows = self._rows()
        left_aligned = {"layer", "d x m", "estimator"}
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if title in left_aligned else cell.rjust(width)
                for cell, width, title in zip(row, widths, rows[0], strict=True)
            ).rstrip()
            for row in rows
        ]
        notes = items_needed_notes(self.records)
        return "\n".join([self._caption, "", *lines, *([""] if notes else []), *notes])

    __repr__ = __str__

    def to_json(self, path: str | Path | None = None, *, item_kappas: bool = False) -> str:
        """Return settings and records as JSON, with null in place of NaN.

        Args:
            path: a file to write, too.
            item_kappas: include the values of single items.
        """
        records = [
            {
                **{k: v for k, v in asdict(r).items() if item_kappas or k != "item_kappas"},
                "kappa_per_feature": r.kappa_per_feature,
            }
            for r in self.records
        ]
        text = json.dumps(_without_nan({"settings": self.settings, "layers": records}), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_pandas(self) -> Any:
        """Return a DataFrame with a row for each layer.

        Raises:
            ImportError: pandas is not installed.
        """
        with optional_packages("to_pandas", "measure"):
            import pandas

        rows = [{k: v for k, v in asdict(r).items() if k != "item_kappas"} for r in self.records]
        frame = pandas.DataFrame(rows)
        frame.insert(2, "kappa_per_feature", [r.kappa_per_feature for r in self.records])
        return frame

    def plot(self, path: str | Path) -> None:
        """Draw kappa of every layer with twice its standard error.

        kappa_max and the layer-wise version are drawn where they are known.

        Args:
            path: the file to write. Its extension selects the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .plotting import layer_profile, save

        save(layer_profile(self.records), path)


def bound_sign(record: LayerFlatness, name: str, sign: str = ">=") -> str:
    """Return the sign before a value that is only a lower bound.

    Other values get no sign.

    Args:
        record: record of a layer.
        name: name of the value.
        sign: sign for "at least".
    """
    return sign if name in record.not_converged else ""


def _value(record: LayerFlatness, name: str) -> Any:
    return getattr(record, name)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
