"""The generalization gap with a test set, and the known terms of its bound.

``generalization gap = representativeness + expected feature robustness`` (Petzka et al. 2021; from memory of the text).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..inputs.numbers import require_number, require_whole
from .robustness_result import FeatureRobustness

__all__ = ["BoundTerms", "GapTerms", "bound_terms", "decompose_gap"]


@dataclass(frozen=True)
class GapTerms:
    """The generalization gap at one size of perturbation.

    Attributes:
        delta: relative size.
        robustness: mean rise of the training loss under feature perturbations of that size.
        representativeness: the rest of the gap.
        gap: test loss minus training loss.
    """

    delta: float
    robustness: float
    representativeness: float
    gap: float


@dataclass(frozen=True)
class BoundTerms:
    """The known terms of the generalization bound.

    The bound is ``gap <~ rate * (flatness + C1 + C2 / sqrt(Delta))``, up to higher orders.

    Attributes:
        flatness: ``kappa / (2m)``.
        rate: ``|S|^(-2 / (4 + m))``.
        product: ``rate * flatness``, the part of the bound that depends on flatness.
        unknown: the constants that depend on the unknown density of the features.
    """

    flatness: float
    rate: float
    unknown: tuple[str, ...] = ("C1", "C2")

    @property
    def product(self) -> float:
        """Return ``rate * flatness``."""
        return self.rate * self.flatness

    def __str__(self) -> str:
        return (
            f"gap <~ {self.rate:.4g} * ({self.flatness:.4g} + C1 + C2/sqrt(Delta)) with probability 1 - Delta, up to "
            "higher orders; C1 and C2 depend on the feature density and are unknown"
        )


def decompose_gap(robustness: FeatureRobustness, train_loss: float, test_loss: float) -> list[GapTerms]:
    """Split the generalization gap at every delta.

    Args:
        robustness: measured on training items, Gaussian or orthogonal.
        train_loss: mean loss of the training set.
        test_loss: mean loss of unseen items.

    Examples:
        >>> curve = FeatureRobustness(
        ...     "head", "gaussian", (0.1,), (0.02,), (0.001,), (0.02,), (0.0,), 1.0, 4, 0.1, 60, 8, False
        ... )
        >>> (term,) = decompose_gap(curve, train_loss=0.1, test_loss=0.4)
        >>> round(term.gap, 6), round(term.representativeness, 6)
        (0.3, 0.28)
    """
    gap = require_number("test_loss", test_loss) - require_number("train_loss", train_loss)
    pairs = zip(robustness.deltas, robustness.measured, strict=True)
    return [GapTerms(delta, rise, gap - rise, gap) for delta, rise in pairs]


def bound_terms(kappa: float, in_features: int, num_items: int) -> BoundTerms:
    """Return the known terms of the generalization bound (Petzka et al. 2021).

    From memory of the text.

    Args:
        kappa: relative flatness on the training set.
        in_features: m.
        num_items: size of the training set.

    Raises:
        ValueError: a count is not positive.

    Examples:
        >>> terms = bound_terms(kappa=8.0, in_features=4, num_items=10_000)
        >>> terms.flatness, terms.rate, terms.product
        (1.0, 0.1, 0.1)
    """
    kappa = require_number("kappa", kappa)
    in_features, num_items = require_whole("in_features", in_features), require_whole("num_items", num_items)
    return BoundTerms(kappa / (2 * in_features), num_items ** (-2 / (4 + in_features)))
