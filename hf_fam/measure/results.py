"""What measuring returns: one record a layer, as a table, JSON, pandas or a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload


@dataclass(frozen=True)
class LayerFlatness:
    """Relative flatness of one layer over a data set. A *small* kappa is *flat*.

    Attributes:
        layer: dotted name.
        kappa: relative flatness, in the units of the loss.
        standard_error: of kappa as an estimate for the population that the items are a sample of; contains both of
            the following. NaN for a single item.
        standard_error_items: the part that more items would reduce.
        standard_error_probes: the part that more probes would reduce; 0 where kappa is exact. It is the whole
            error if kappa of exactly these items is meant. NaN for a single probe.
        kappa_max: ``sum_s ||w_s||^2 lambda_max(H_ss)``; None if it was not asked for.
        layerwise: ``||W||_F^2 Tr H``; None if it was not asked for.
        hessian_trace: Tr H of the layer's weight; None if ``layerwise`` was not asked for.
        hessian_trace_error: standard error of Tr H, from items and probes.
        hessian_max_eigenvalue: the largest eigenvalue of the layer's whole Hessian; None if it was not asked for.
        weight_norm: ``||W||_F``, of the normalized weight where features were normalized.
        in_features: m.
        out_features: d.
        num_items: how many items with a label were measured.
        loss: their mean loss, weight decay not included.
        estimator: ``"closed_form"`` (exact), ``"hessian"`` or ``"gauss_newton"``.
        coupling: which rows of pre-activations the loss couples: ``"rows"`` (none), ``"items"`` or ``"batch"``.
        probes: random directions that every batch was measured with; 0 where it is exact.
        products: Hessian-vector products of a batch that were taken, the few of a first look for coupled rows not
            counted.
        seconds: time spent on this layer, and its share of the forward passes.
        item_kappas: kappa of single items, a random 4096 of them at most; empty where items are coupled.
        not_converged: which of ``"kappa_max"`` and ``"hessian_max_eigenvalue"`` are only lower bounds, because their
            Lanczos iterations were at the limit before they had converged; shown with ``>=`` in tables.
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
        """kappa / m; ``delta^2 / 2`` times it is the expected rise of the loss, see `hf_fam.measure.robustness`."""
        return self.kappa / self.in_features


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
    """The layers that were measured, in the order in which they were named.

    Args:
        records: one a layer.
        settings: how they were measured.

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
        """A record by its number or by the name of its layer."""
        if isinstance(key, slice):
            return FlatnessTable(self.records[key], self.settings)
        if isinstance(key, int):
            return self.records[key]
        for record in self.records:
            if record.layer == key:
                return record
        raise KeyError(f"{key!r} was not measured; these were: {', '.join(r.layer for r in self.records)}")

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[LayerFlatness]:
        return iter(self.records)

    def __str__(self) -> str:
        shown = [c for c in _COLUMNS if not c[1] or any(_value(r, c[1]) is not None for r in self.records)]
        rows = [[title for title, _ in shown]]
        for record in self.records:
            size = f"{record.out_features} x {record.in_features}"
            rows.append([bound(record, name) + _cell(_value(record, name)) if name else size for _, name in shown])
        words = {"layer", "d x m", "estimator"}
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if title in words else cell.rjust(width)
                for cell, width, (title, _) in zip(row, widths, shown, strict=True)
            ).rstrip()
            for row in rows
        ]
        first = self.records[0]
        return "\n".join([f"{first.num_items} items, mean loss {first.loss:.4g}; a small kappa is flat", "", *lines])

    __repr__ = __str__

    def to_json(self, path: str | Path | None = None, *, item_kappas: bool = False) -> str:
        """Settings and records as a JSON object; what is not a number (NaN) becomes null.

        Args:
            path: where to write it as well.
            item_kappas: the values of single items, too.
        """
        records = [
            {
                **{k: v for k, v in asdict(r).items() if item_kappas or k != "item_kappas"},
                "kappa_per_feature": r.kappa_per_feature,
            }
            for r in self.records
        ]
        text = json.dumps(_plain({"settings": self.settings, "layers": records}), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_pandas(self) -> Any:
        """A DataFrame with a row a layer.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        rows = [{k: v for k, v in asdict(r).items() if k != "item_kappas"} for r in self.records]
        frame = pandas.DataFrame(rows)
        frame.insert(2, "kappa_per_feature", [r.kappa_per_feature for r in self.records])
        return frame

    def plot(self, path: str | Path) -> None:
        """Draw kappa of every layer with twice its standard error, and kappa_max and layer-wise where they are known.

        Args:
            path: the file to write; its ending is the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .plotting import layer_profile, save

        save(layer_profile(self.records), path)


def bound(record: LayerFlatness, name: str, sign: str = ">=") -> str:
    """The sign before a value that is only a lower bound, nothing before others.

    Args:
        record: of a layer.
        name: of the value.
        sign: what stands for "at least".
    """
    return sign if name in record.not_converged else ""


def _value(record: LayerFlatness, name: str) -> Any:
    return getattr(record, name)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
