"""What `feature_robustness` returns: measured and predicted rise of the loss, compared."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from .page import escape, html_table

# Measured and predicted rise diverge if they differ by this many standard errors and by this fraction.
_STANDARD_ERRORS, _FRACTION = 3.0, 0.1


@dataclass(frozen=True)
class FeatureRobustness:
    """The rise of the loss under random feature perturbations, measured and predicted.

    Attributes:
        layer: dotted name.
        matrices: ``"orthogonal"``, ``"gaussian"`` or ``"rank_one"``.
        deltas: relative sizes of the perturbation.
        measured: mean rise of the loss for every delta.
        standard_errors: of the means, from the random matrices.
        predicted: ``delta^2 / (2m) kappa``.
        predicted_errors: their standard errors, from the probes of kappa.
        kappa: relative flatness on the same items.
        in_features: m.
        loss: mean loss without perturbation.
        num_items: number of items.
        samples: number of random matrices; each is used with both signs.
        piecewise_linear: whether the network above the layer is piecewise linear with kinks (ReLU); None if unknown.
        rounding: the largest rounding error of the mean loss in its floating-point type, an error of the rise.
    """

    layer: str
    matrices: str
    deltas: tuple[float, ...]
    measured: tuple[float, ...]
    standard_errors: tuple[float, ...]
    predicted: tuple[float, ...]
    predicted_errors: tuple[float, ...]
    kappa: float
    in_features: int
    loss: float
    num_items: int
    samples: int
    piecewise_linear: bool | None
    rounding: float = 0.0

    @property
    def diverges_at(self) -> float | None:
        """Return the smallest delta at which measured and predicted rise differ.

        They differ if the difference exceeds three standard errors and 10 %. None if they agree for every
        delta.
        """
        for delta, x, error, p, p_error in zip(
            self.deltas, self.measured, self.standard_errors, self.predicted, self.predicted_errors, strict=True
        ):
            limit = _STANDARD_ERRORS * math.hypot(error, p_error, self.rounding)
            if abs(x - p) > limit and abs(x - p) > _FRACTION * abs(p):
                return delta
        return None

    @property
    def unresolved_up_to(self) -> float | None:
        """Return the largest delta whose rises are lost in rounding.

        Both rises, measured and predicted, are below the precision of the loss. None if there is no such delta.
        """
        limit = _STANDARD_ERRORS * self.rounding
        rises = zip(self.deltas, self.measured, self.predicted, strict=True)
        return max((delta for delta, x, p in rises if max(abs(x), abs(p)) < limit), default=None)

    @property
    def verdict(self) -> str:
        """Return a sentence about the curves, and one about rounding if needed."""
        unresolved = self.unresolved_up_to
        if unresolved is None:
            return self._comparison
        return (
            f"{self._comparison} Up to delta = {unresolved:g}, the rise is below the precision of the loss "
            f"({self.rounding:.1g}). Use a wider floating-point type, such as model.double(), to measure it."
        )

    @property
    def _comparison(self) -> str:
        delta = self.diverges_at
        if delta is None:
            return (
                f"Within their errors, the measured rise agrees with delta^2/(2m) kappa for all delta up to "
                f"{self.deltas[-1]:g}."
            )
        k = self.deltas.index(delta)
        ratio = self.measured[k] / self.predicted[k] if self.predicted[k] else math.inf
        start = (
            f"From delta = {delta:g} on, the measured rise differs from delta^2/(2m) kappa (by a factor of {ratio:.2g})"
        )
        if self.piecewise_linear:
            return (
                f"{start}: the network above the layer is piecewise linear. The perturbation crosses kinks, such as "
                "those of ReLU, which kappa, a second derivative, does not contain."
            )
        return f"{start}: higher orders of the loss matter."

    def __str__(self) -> str:
        lines = [
            f"feature robustness of '{self.layer}', {self.num_items} items, {self.samples} {self.matrices} matrices "
            "and their negatives",
            "",
            f"{'delta':>8}  {'rise of the loss':>24}  {'delta^2/(2m) kappa':>20}",
        ]
        for delta, x, error, p in zip(self.deltas, self.measured, self.standard_errors, self.predicted, strict=True):
            lines.append(f"{delta:>8g}  {x:>12.4g} ± {error:<9.2g}  {p:>20.4g}")
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        """Return the curve as a table for a notebook."""
        rows = [
            [f"{delta:g}", f"{x:.4g} ± {error:.2g}", f"{p:.4g}"]
            for delta, x, error, p in zip(self.deltas, self.measured, self.standard_errors, self.predicted, strict=True)
        ]
        title = f"<p>Feature robustness of {escape(self.layer)}, {self.num_items} items. {escape(self.verdict)}</p>"
        return title + html_table(["δ", "rise of the loss", "δ²/(2m) κ"], rows)

    def to_json(self) -> str:
        """Return all values as a JSON object."""
        return json.dumps({**asdict(self), "diverges_at": self.diverges_at, "verdict": self.verdict}, indent=2)

    def plot(self, path: str | Path) -> None:
        """Draw measured and predicted rise in one figure.

        Args:
            path: the file to write. Its extension selects the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .plotting import robustness_curve, save

        save(robustness_curve(self), path)
