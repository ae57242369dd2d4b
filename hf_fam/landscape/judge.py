"""The verdict about a split, from B, D, the Hessian before the split and the errors of all three."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..inputs.numbers import require_number
from .error_bounds import ErrorBounds
from .smallest_curvature import Curvature
from .split_curvature import SplitCurvature

MINIMUM, SADDLE, ZERO, UNDECIDED = "minimum", "saddle", "zero within rounding", "undecided"

# Largest relative change of the loss for a relative change of the parameters at which a point is worth a Newton step.
GRADIENT_TOLERANCE = 1e-5
# Farthest distance to the critical point, over the parameters' length, at which one Newton step says where it is.
DISTANCE_TOLERANCE = 1e-4
# Smallest eigenvalue of a Hessian, over the largest, that float64 tells from zero with certainty.
HESSIAN_ROUNDING = 1e-10


@dataclass(frozen=True)
class Verdict:
    """The kind of critical point that a split makes.

    Attributes:
        kind: "minimum": a local minimum, degenerate without weight decay; "saddle": a direction of negative curvature
            exists; "zero within rounding": the curvature that decides is no larger than its rounding error;
            "undecided": neither could be shown.
        margin: how many times its error bound the deciding number is; 1 or less if nothing is decided.
        reason: one sentence.
    """

    kind: str
    margin: float
    reason: str


class Judge:
    """Decides from the numbers.

    Args:
        curvature: B, D and the gradient.
        relative_gradient: ``||grad L|| ||theta|| / |L|``.
        errors: what B, D and the gradient are known to.
        hessian: extreme eigenvalues before the split; None if the point is not critical.
    """

    def __init__(
        self, curvature: SplitCurvature, relative_gradient: float, errors: ErrorBounds, hessian: Curvature | None
    ) -> None:
        self.curvature, self.gradient, self.errors, self.hessian = curvature, relative_gradient, errors, hessian
        self.d = float(torch.linalg.matrix_norm(curvature.D_orthogonal, 2))
        eigenvalues = torch.linalg.eigvalsh(curvature.B)
        self.lowest, self.highest = float(eigenvalues[0]), float(eigenvalues[-1])
        self.bound_b = errors.b + errors.shift_b
        self.bound_d = errors.d + errors.shift_d

    @property
    def may_be_critical(self) -> bool:
        """Return True if the gradient is small enough for a Newton step to judge it."""
        return self.gradient <= GRADIENT_TOLERANCE or float(self.curvature.gradient.norm()) <= self.errors.gradient

    def verdict(self, ratio: float) -> Verdict:
        """Return the verdict for a ratio.

        Raises:
            ValueError: the ratio is not finite.
        """
        ratio = require_number("ratio", ratio)
        rules = (self._by_decay,) if self.curvature.weight_decay else (self._by_d, self._flat_activation, self._by_b)
        for rule in (self._not_critical, *rules):
            decision = rule(ratio)
            if decision is not None:
                return decision
        return self._by_hessian("D = 0, " + ("B > 0" if self.lowest > 0 else "B < 0"), self._margin_b())

    def _not_critical(self, ratio: float) -> Verdict | None:
        if not self.may_be_critical:
            return Verdict(
                UNDECIDED,
                GRADIENT_TOLERANCE / self.gradient,
                f"not a critical point: the relative gradient is {self.gradient:.1e}, more than "
                f"{GRADIENT_TOLERANCE:.0e}; give the model of a converged hf_fam.landscape.find_critical_point",
            )
        assert self.hessian is not None  # computed wherever the gradient is small
        if self.hessian.failure:
            return Verdict(UNDECIDED, 0.0, self.hessian.failure)
        if self.hessian.newton_distance > DISTANCE_TOLERANCE:
            return Verdict(
                UNDECIDED,
                DISTANCE_TOLERANCE / self.hessian.newton_distance,
                "not near a critical point: the gradient is small, but a Newton step has "
                f"{self.hessian.newton_distance:.1e} of the parameters' length. Give the model of a converged "
                "hf_fam.landscape.find_critical_point",
            )
        return None

    def _by_d(self, ratio: float) -> Verdict | None:
        if self.d <= self.errors.d:
            return None
        margin = _over(self.d, self.bound_d)
        if margin > 1:
            return Verdict(SADDLE, margin, f"D is not zero (norm {self.d:.1e}): a saddle for every ratio")
        return Verdict(
            UNDECIDED,
            margin,
            f"D (norm {self.d:.1e}) cannot be distinguished from zero at this distance from the critical point",
        )

    def _flat_activation(self, ratio: float) -> Verdict | None:
        if self.errors.slopes.second > 0:
            return None
        return Verdict(
            UNDECIDED, 0.0, "the activation is piecewise linear here (sigma'' = 0), so B = 0 decides nothing"
        )

    def _by_b(self, ratio: float) -> Verdict | None:
        """Decide all cases except the one that depends on H(theta*)."""
        if ratio in (0.0, 1.0):
            return Verdict(UNDECIDED, 0.0, f"at ratio {ratio:g} the curvature of the split vanishes: a boundary case")
        is_inside = 0 < ratio < 1
        low, high = (self.lowest, self.highest) if is_inside else (-self.highest, -self.lowest)
        margin = _over(abs(low), self.bound_b)
        if low < 0 and margin > 1:
            definite = "indefinite" if high > self.bound_b else ("negative" if is_inside else "positive")
            side = "inside" if is_inside else "outside"
            return Verdict(SADDLE, margin, f"D = 0, B is {definite} and the ratio lies {side} (0, 1)")
        if abs(low) <= self.errors.b:
            all_zero = " and D are" if max(abs(low), abs(high)) <= self.errors.b else " has an eigenvalue that is"
            return Verdict(
                ZERO, margin, f"B{all_zero} zero within rounding ({abs(low):.1e}, known to {self.errors.b:.1e})"
            )
        if margin <= 1:
            return Verdict(
                UNDECIDED,
                margin,
                f"an eigenvalue of B, {low:.1e}, cannot be distinguished from zero at this distance from the critical "
                "point",
            )
        return None

    def _by_decay(self, ratio: float) -> Verdict:
        """Decide with weight decay, by the whole block."""
        if ratio != 0.5:
            return Verdict(
                UNDECIDED,
                0.0,
                f"with weight decay, only the ratio 1/2 makes a critical point: at {ratio:g} the objective has a slope",
            )
        low = float(torch.linalg.eigvalsh(self.curvature.block(ratio))[0])
        bound = self.bound_b / 4 + self.bound_d
        margin = _over(abs(low), bound)
        if margin <= 1:
            kind = ZERO if abs(low) <= self.errors.b / 4 + self.errors.d else UNDECIDED
            return Verdict(kind, margin, f"the smallest eigenvalue of the split, {low:.1e}, is known to {bound:.1e}")
        if low < 0:
            return Verdict(SADDLE, margin, f"the split has negative curvature ({low:.1e}) in spite of the weight decay")
        return self._by_hessian("weight decay, B and D together are positive", margin)

    def _margin_b(self) -> float:
        return _over(max(self.lowest, -self.highest), self.bound_b)

    def _by_hessian(self, split: str, margin_split: float) -> Verdict:
        assert self.hessian is not None
        hessian = self.hessian
        # Near a critical point, H is that of the critical point up to about the distance.
        margin = _over(abs(hessian.relative), max(HESSIAN_ROUNDING, 10 * hessian.newton_distance))
        if margin > 1 and hessian.relative < 0:
            return Verdict(SADDLE, margin, "the point was a saddle before the split: H has a negative eigenvalue")
        if not margin > 1:
            return Verdict(
                UNDECIDED,
                margin,
                f"the smallest relative eigenvalue of H, {hessian.relative:.1e}, cannot be distinguished from zero at "
                f"this distance from the critical point ({hessian.newton_distance:.1e} of the parameters' length)",
            )
        return Verdict(MINIMUM, min(margin, margin_split), f"{split} and H(theta*) > 0 ({hessian.method})")


def _over(value: float, bound: float) -> float:
    """Return a size over its error bound."""
    return value / bound if bound else (math.inf if value else 0.0)
