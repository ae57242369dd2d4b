"""Say once that the flatness term does nothing."""

from __future__ import annotations

import math
import warnings

# The term does nothing while its gradient is below this fraction of the loss's. The log has the ratio of a step in ten.
_IDLE_RATIO = 1e-4
# Measured ratios before the first warning, because a new head begins with a small kappa.
_MEASURED = 3
# The ratio that the remedy aims at.
_USEFUL_RATIO = 1e-2
# Tolerance for the end of the warm-up, whose number of steps is rounded.
_ROUNDING = 1e-6


class IdleTermWatch:
    """Warns once if the gradient of the term has been tiny beside that of the loss from the beginning.

    Examples:
        >>> watch = IdleTermWatch()
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     for _ in range(4):
        ...         watch.observe("lm_head", ratio=1e-9, strength=1e-6, full_strength=1e-6)
        >>> len(caught), str(caught[0].message).partition(":")[0]
        (1, 'the flatness term does nothing')
    """

    def __init__(self) -> None:
        self._measured = 0
        self._largest = 0.0
        self._layer = ""
        self._strength = 0.0
        self._is_done = False

    def observe(self, layer: str, ratio: float, strength: float, full_strength: float) -> None:
        """Take a logged ratio, and warn at the third one if all have been tiny.

        Args:
            layer: name of the layer.
            ratio: norm of the term's gradient by that of the loss.
            strength: mean lambda since the last log.
            full_strength: lambda after the warm-up; before its end nothing is counted.
        """
        if strength < full_strength * (1 - _ROUNDING) or not math.isfinite(ratio):
            return
        self._measured += 1
        self._largest = max(self._largest, ratio)
        self._layer, self._strength = layer, full_strength
        if self._largest >= _IDLE_RATIO:
            self._is_done = True
        if self._measured >= _MEASURED:
            self.end()

    def end(self) -> None:
        """Warn at the end of a training that was too short for three ratios; that of the first step says nothing."""
        if self._is_done or self._measured < 2:
            return
        self._is_done = True
        if self._largest > 0:
            factor = _USEFUL_RATIO / self._largest
            remedy = f"raise fam_lambda, to about {self._strength * factor:.1g} for a hundredth"
        else:
            remedy = "raise fam_lambda"
        warnings.warn(
            f"the flatness term does nothing: its gradient at '{self._layer}' is {self._largest:.1g} of the loss's at "
            f"fam_lambda={self._strength:g}. To change that, {remedy}, or choose another fam_layer (`hf-fam layers "
            "MODEL` lists them); fam_lambda=0 is plain training and saves the time.",
            stacklevel=3,
        )
