"""The attributes of a measured layer that figures and the advice on items read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# LayerFlatness describes the attributes.
# ruff: noqa: D102


class MeasuredLayer(Protocol):
    """A measured layer, such as `hf_fam.measure.LayerFlatness`."""

    @property
    def layer(self) -> str: ...
    @property
    def kappa(self) -> float: ...
    @property
    def kappa_max(self) -> float | None: ...
    @property
    def layerwise(self) -> float | None: ...
    @property
    def num_items(self) -> int: ...
    @property
    def item_kappas(self) -> Sequence[float]: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def standard_error_items(self) -> float: ...
    @property
    def standard_error_probes(self) -> float: ...
