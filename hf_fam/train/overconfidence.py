"""Warn when a head escapes the flatness term by growing confident."""

from __future__ import annotations

import math
import warnings

import torch

from ..flatness.relative_flatness import RelativeFlatness

# Compared with its largest logged value, kappa has fallen to this fraction while the weights have grown by this factor.
_FALL, _GROWTH = 0.1, 2.0


class OverconfidenceWatch:
    """Compares logged kappas of a head with the size of its weights, and warns once.

    kappa without smoothing vanishes as a softmax or sigmoid head grows confident. So a head that separates its labels
    can make the term small by large weights; see docs/smoothing.md.
    """

    def __init__(self) -> None:
        self._largest_kappa = 0.0
        self._size_at_largest = math.inf  # until a kappa is positive
        self._has_warned = False

    def observe(self, flatness: RelativeFlatness, kappa: float) -> None:
        """Take a logged kappa, and warn if the head is escaping.

        Args:
            flatness: flatness of the trained model.
            kappa: mean since the last log.
        """
        can_escape = flatness.at_head and flatness.method.can_smooth and not flatness.method.smoothing
        if self._has_warned or not can_escape:
            return
        weight = flatness.layer.weight.detach().float()
        if hasattr(weight, "full_tensor"):  # sharded
            return
        size = float(torch.linalg.vector_norm(weight - weight.mean(0)))
        if kappa >= self._largest_kappa:
            self._largest_kappa, self._size_at_largest = kappa, size
        elif kappa < _FALL * self._largest_kappa and size > _GROWTH * self._size_at_largest:
            self._has_warned = True
            warnings.warn(
                f"'{flatness.layer.name}' is growing overconfident: its kappa fell from {self._largest_kappa:.3g} to "
                f"{kappa:.3g} while its weights grew {size / self._size_at_largest:.1f} times, so the flatness term no "
                "longer holds them. Set fam_smoothing=0.1, or train for fewer steps.",
                stacklevel=3,
            )
