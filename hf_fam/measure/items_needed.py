"""How many items a measurement needs, where the differences between items dominate its error."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..inputs.numbers import require_number
from .measured_layer import MeasuredLayer

# Tables and reports name the number of items for this relative standard error.
RELATIVE_ERROR = 0.05


def items_needed(record: MeasuredLayer, relative_error: float = RELATIVE_ERROR) -> int | None:
    """Return about how many items give kappa with a relative standard error.

    The variance falls with the number of items. None if the measured error is small enough, if random probes cause
    most of it, or if it is unknown.

    Args:
        record: the measured layer.
        relative_error: the wanted standard error, as a fraction of kappa.

    Raises:
        ValueError: the error is not positive.

    Examples:
        >>> from types import SimpleNamespace
        >>> record = SimpleNamespace(
        ...     kappa=2.0, num_items=60, standard_error=0.4, standard_error_items=0.4, standard_error_probes=0.0
        ... )
        >>> items_needed(record, 0.1)  # half of the measured 20 %
        240
    """
    relative_error = require_number("relative_error", relative_error, 0, open_low=True)
    wanted = relative_error * abs(record.kappa)
    probes = 0.0 if math.isnan(record.standard_error_probes) else record.standard_error_probes
    if not (wanted > 0 and record.standard_error > wanted and record.standard_error_items > probes):  # also for NaN
        return None
    return math.ceil(record.num_items * (record.standard_error / wanted) ** 2 * (1 - 1e-12))


def items_needed_notes(records: Iterable[MeasuredLayer], kappa: str = "kappa") -> list[str]:
    """Return a sentence for every layer whose error comes mostly from the differences between items.

    Args:
        records: the measured layers.
        kappa: how kappa is written.
    """
    notes = []
    for record in records:
        count = items_needed(record)
        if count is not None:
            percent = float(f"{100 * record.standard_error / abs(record.kappa):.2g}")
            notes.append(
                f"{record.layer}: the differences between items dominate the standard error, {percent:g} % of "
                f"{kappa}. About {_rounded(count):,} items give {100 * RELATIVE_ERROR:g} %."
            )
    return notes


def _rounded(count: int) -> int:
    """Return a number with two digits that differ from 0, rounded up."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / unit) * unit
