"""Leave a local minimum that splitting a neuron has made."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .certificate import SADDLE, SplitCertificate
from .descent import descend, search
from .hidden_layer import HiddenLayer, find_hidden_layer
from .objective import Loss, Objective, float64_copy, trainable
from .path_point import DESCEND, SLIDE, STEP, PathPoint
from .splitting import RATIO_OUTSIDE, split_fan_out, split_hidden

# Largest rounding error of the loss, relative to loss and ratio: weights of the ratio's size cancel in the outputs.
ROUNDING = 1e-12
SAMPLES = 4


@dataclass(frozen=True, eq=False)
class EscapePath:
    """A path along which the loss never increases, from the split network to a lower loss.

    Attributes:
        points: points from the start; straight lines connect the points of "step" and "descend".
        model: the network at the end, in float64, with one neuron more than before.
    """

    points: list[PathPoint]
    model: nn.Module

    @property
    def losses(self) -> list[float]:
        """Return the loss at every point."""
        return [point.loss for point in self.points]

    def plot(self, path: str | Path) -> None:
        """Draw the loss along the path; needs matplotlib.

        Args:
            path: the file to write. Its extension selects the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .path_figure import plot_path

        plot_path(self.points, path)


@torch.enable_grad()
def escape_path(
    model: nn.Module,
    certificate: SplitCertificate,
    loss: Loss | None,
    data: Any,
    *,
    to_ratio: float | None = None,
    slide_points: int = 21,
    steps: int = 500,
    reduction: str | None = None,
) -> EscapePath:
    """Leave the local minimum of the split network without increasing the loss.

    1. *slide*: the ratio of the split goes from ``certificate.ratio`` to ``to_ratio``, where the same function is a
       saddle. The loss stays as it is, because the function does.
    2. *step*: along the most negative direction of [[ratio (1 - ratio) B, D], [D^T, 0]]; with D = 0 and a ratio
       outside [0, 1] that is the top eigenvector of B, along which the two incoming weights part. Both signs are tried.
    3. *descend*: L-BFGS, each step shortened until the loss falls along it, at 4 points. Of the two signs, the path
       with the lower end is returned.

    Args:
        model: the network before the split, the same as for `split_certificate`; it stays as it is.
        certificate: certificate of the neuron to split; its verdict need not be "minimum".
        loss: the same as for the certificate.
        data: the same as for the certificate.
        to_ratio: ratio at the end of the slide; None: the certificate's ratio if that is a saddle, else 1.5 or 1/2, by
            the sign of B.
        slide_points: number of points of the slide, both ends included; at least 2.
        steps: the largest number of steps of descent.
        reduction: the same as for the certificate.

    Raises:
        ValueError: there is no direction of negative curvature, the loss is not that of the certificate, or an argument
            is out of range.
        RuntimeError: the loss increased by more than rounding, so it depends on more than the parameters, such as
            random augmentation.

    Examples:
        >>> from hf_fam.landscape import HalfSquaredError, find_critical_point, split_certificate
        >>> x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
        >>> y = 2 * x.tanh() - (4 * x).tanh()
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
        >>> model = find_critical_point(model, HalfSquaredError(), (x, y))
        >>> certificate = split_certificate(model, HalfSquaredError(), (x, y), "0", neuron=0, ratio=0.25)
        >>> path = escape_path(model, certificate, HalfSquaredError(), (x, y))
        >>> round(path.losses[0], 6), path.losses[-1] < 0.05
        (0.51346, True)
    """
    if isinstance(slide_points, bool) or not isinstance(slide_points, int) or slide_points < 2:
        raise ValueError(
            f"slide_points={slide_points!r}: give a whole number of at least 2, for both ends of the slide."
        )
    if to_ratio is not None and not math.isfinite(to_ratio):
        raise ValueError(f"to_ratio={to_ratio!r}: give a finite number, or None.")
    target = _saddle_ratio(certificate) if to_ratio is None else to_ratio
    direction = _steepest_direction(certificate, target)
    source = find_hidden_layer(model, certificate.layer, certificate.next_layer)
    copied = float64_copy(model)
    v = source.fan_out[:, certificate.neuron].to(copied.get_parameter(f"{certificate.next_layer}.weight"))
    hidden = find_hidden_layer(copied, certificate.layer, certificate.next_layer)
    split_hidden(hidden, [certificate.neuron], certificate.ratio)
    objective = Objective(loss, data, reduction)
    builder = _PathBuilder(copied, objective, certificate.ratio)
    if abs(builder.points[0].loss - certificate.loss) > 1e-9 * max(1.0, abs(certificate.loss)):
        raise ValueError(
            f"the loss is {builder.points[0].loss:.9g}, but the certificate was made at {certificate.loss:.9g}: give "
            "the model, loss and data that it was made for."
        )
    split = _Split(hidden, certificate.neuron, hidden.width - 1, v)
    if target != certificate.ratio:
        for k in range(1, slide_points):
            ratio = certificate.ratio + (target - certificate.ratio) * k / (slide_points - 1)
            builder.slide(ratio, split.slide(ratio))
    displacement = split.displacement(copied, direction, target)
    paths = [
        path for path in (builder.copy().leave(sign * displacement, steps) for sign in (1, -1)) if path is not None
    ]
    if not paths:
        raise ValueError(
            "no step along the direction of negative curvature lowers the loss by more than rounding: the curvature is "
            "too small. Try another neuron or to_ratio."
        )
    best = min(paths, key=lambda path: path.points[-1].loss)
    return EscapePath(best.points, best.model)


class _PathBuilder:
    """The points so far; refuses a loss that increases."""

    def __init__(self, model: nn.Module, objective: Objective, ratio: float) -> None:
        self.model, self.objective = model, objective
        self.points = [PathPoint(SLIDE, ratio, 0.0, objective.value(model))]

    def slide(self, ratio: float, length: float) -> None:
        self._add(SLIDE, ratio, length, self.objective.value(self.model))

    def copy(self) -> _PathBuilder:
        """Return a copy, to continue the path in another direction."""
        other = copy.copy(self)
        other.model, other.points = copy.deepcopy(self.model), list(self.points)
        return other

    def leave(self, displacement: Tensor, steps: int) -> _PathBuilder | None:
        """Step and descend; return None if no step lowers the loss."""
        ratio = self.points[-1].ratio
        step_and_losses = search(self.model, self.objective, displacement, self.points[-1].loss, SAMPLES)
        if step_and_losses is None:
            return None
        step, losses = step_and_losses
        for loss in losses:
            self._add(STEP, ratio, float(step.norm()) / SAMPLES, loss)
        for length, loss in descend(self.model, self.objective, steps, SAMPLES):
            self._add(DESCEND, ratio, length, loss)
        return self

    def _add(self, phase: str, ratio: float, length: float, loss: float) -> None:
        previous = self.points[-1]
        if not loss <= previous.loss + ROUNDING * max(1.0, abs(previous.loss)) * max(1.0, abs(ratio)):
            raise RuntimeError(
                f"the loss rose from {previous.loss!r} to {loss!r} in phase {phase!r}, so it depends on more than the "
                "parameters: use fixed data, without augmentation, and without shuffling under batch normalization."
            )
        self.points.append(PathPoint(phase, ratio, previous.length + length, loss))


@dataclass(frozen=True)
class _Split:
    """Two neurons that were one, in the model of the path."""

    hidden: HiddenLayer
    old: int
    new: int
    v: Tensor

    @torch.no_grad()
    def slide(self, ratio: float) -> float:
        """Set another ratio; return the length of the way there."""
        columns = _as_rows(self.hidden.outgoing)
        before = columns[:, [self.old, self.new]].clone()
        columns[:, self.old], columns[:, self.new] = split_fan_out(self.v, ratio)
        return float((columns[:, [self.old, self.new]] - before).norm())

    def displacement(self, model: nn.Module, direction: Tensor, ratio: float) -> Tensor:
        """Return the direction (q, w) in the space of the parameters.

        u1 + (1 - ratio) q, u2 - ratio q, v1 + w, v2 - w.
        """
        first, outgoing = self.hidden.incoming[0], self.hidden.outgoing
        inputs = _as_rows(first).shape[1]
        w = direction[len(direction) - len(self.v) :]
        q = direction[: len(direction) - len(self.v)]
        moved = {id(p): torch.zeros_like(p) for p in trainable(model)}
        rows = _as_rows(first, moved[id(first.weight)])
        columns = _as_rows(outgoing, moved[id(outgoing.weight)])
        for neuron, share, sign in ((self.old, 1 - ratio, 1), (self.new, -ratio, -1)):
            rows[neuron] = share * q[:inputs]
            columns[:, neuron] = sign * w
            if len(q) > inputs:
                moved[id(first.bias)][neuron] = share * q[-1]
        return torch.cat([moved[id(p)].reshape(-1) for p in trainable(model)])


def _as_rows(module: Any, tensor: Tensor | None = None) -> Tensor:
    """Return a view of the weight, or of its like, as (outputs, inputs)."""
    rows: Tensor = module.weight.data if tensor is None else tensor
    return rows.T if type(module).__name__ == "Conv1D" else rows


def _saddle_ratio(certificate: SplitCertificate) -> float:
    """Return a ratio at which the split is a saddle.

    The certificate's own ratio is preferred.
    """
    candidates = [certificate.ratio, RATIO_OUTSIDE, 0.5]
    for ratio in candidates:
        if certificate.judge(ratio).kind == SADDLE:
            return ratio
    # Near a critical point nothing is certified, but negative curvature can still lower the loss.
    return min(candidates, key=lambda ratio: float(torch.linalg.eigvalsh(certificate.curvature.block(ratio))[0]))


def _steepest_direction(certificate: SplitCertificate, ratio: float) -> Tensor:
    block = certificate.curvature.block(ratio)
    if certificate.curvature.D_orthogonal.norm() <= 1e-10 * max(certificate.curvature.scale_d, 1e-300):
        block[: len(certificate.B), len(certificate.B) :] = 0
        block[len(certificate.B) :, : len(certificate.B)] = 0
    values, vectors = torch.linalg.eigh(block)
    if not values[0] < 0:
        raise ValueError(
            f"splitting neuron {certificate.neuron} of '{certificate.layer}' has no direction of negative curvature "
            f"at ratio {ratio:g}: {certificate.judge(ratio).reason}."
        )
    return vectors[:, 0]
