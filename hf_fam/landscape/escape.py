"""Leave a local minimum that splitting a neuron has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.kinds import require_instance
from ..inputs.numbers import require_number, require_whole
from .certificate import SplitCertificate
from .hidden_layer_search import find_hidden_layer
from .judge import SADDLE
from .new_neuron import NewNeuron, best_new_neuron
from .objective import Loss, Objective, float64_copy
from .path_builder import PathBuilder, Split
from .path_point import SLIDE, TURN, PathPoint
from .splitting import RATIO_OUTSIDE, split_hidden

# A smaller fall, relative to the loss, is no escape.
LEAST_FALL = 1e-6


@dataclass(frozen=True, eq=False)
class EscapePath:
    """A path along which the loss never increases, from the split network downward.

    Attributes:
        points: points from the start; straight lines connect the points of "turn", "step" and "descend".
        model: the network at the end, in float64, with one neuron more than before.
    """

    points: list[PathPoint]
    model: nn.Module

    @property
    def losses(self) -> list[float]:
        """Return the loss at every point."""
        return [point.loss for point in self.points]

    @property
    def fall(self) -> float:
        """Return by how much the loss falls."""
        return self.points[0].loss - self.points[-1].loss

    @property
    def relative_fall(self) -> float:
        """Return the fall over the loss at the start."""
        return self.fall / abs(self.points[0].loss) if self.points[0].loss else 0.0

    @property
    def escapes(self) -> bool:
        """Return True if the loss falls by more than a millionth of itself."""
        return self.relative_fall > LEAST_FALL

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

    1. *slide*: the ratio of the split goes to where the same function can be left. The loss stays as it is, because the
       function does.
    2. *step*, in one of two ways. At a ratio where the function is a saddle, it goes along the most negative direction
       of [[ratio (1 - ratio) B, D], [D^T, 0]]. With D = 0 and a ratio outside [0, 1] that is the top eigenvector of B,
       along which the two incoming weights part. Both signs are tried. Or at ratio 1, where the new neuron has no
       outgoing weights: there its incoming weights *turn* at constant loss to those whose outgoing weights have the
       largest gradient, and these grow.
    3. *descend*: L-BFGS, each step shortened until the loss falls along it, at 4 points. The path with the lowest end
       is returned. `EscapePath.escapes` says whether its fall counts.

    With weight decay, the loss is not constant along a slide. There is a path only if the split at 1/2 is a saddle.

    Args:
        model: the network before the split, the same as for `split_certificate`; it stays as it is.
        certificate: certificate of the neuron to split; its verdict need not be "minimum".
        loss: the same as for the certificate.
        data: the same as for the certificate.
        to_ratio: ratio at the end of the slide, for a step along negative curvature. None tries both ways. The first is
            at the certificate's ratio if that is a saddle, else at 1.5 or 1/2, by the sign of B.
        slide_points: number of points of the slide, both ends included; at least 2.
        steps: the largest number of steps of descent.
        reduction: the same as for the certificate.

    Raises:
        ValueError: no step lowers the loss, the loss is not that of the certificate, or an argument is out of range.
        TypeError: the certificate is none.
        RuntimeError: the loss increased by more than rounding, so it depends on more than the parameters, such as
            random augmentation.

    Examples:
        >>> from hf_fam.landscape import HalfSquaredError, find_critical_point, split_certificate
        >>> x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
        >>> y = 2 * x.tanh() - (4 * x).tanh()
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
        >>> model = find_critical_point(model, HalfSquaredError(), (x, y)).model
        >>> certificate = split_certificate(model, HalfSquaredError(), (x, y), "0", neuron=0, ratio=0.25)
        >>> path = escape_path(model, certificate, HalfSquaredError(), (x, y))
        >>> round(path.losses[0], 6), path.losses[-1] < 0.05, path.escapes
        (0.51346, True, True)
    """
    require_instance("certificate", certificate, SplitCertificate, "what split_certificate returned")
    slide_points = require_whole("slide_points", slide_points, 2, more=", for both ends of the slide")
    steps = require_whole("steps", steps, 0)
    to_ratio = None if to_ratio is None else require_number("to_ratio", to_ratio, more=", or None")
    decay = certificate.curvature.weight_decay
    if decay and to_ratio not in (None, 0.5):
        raise ValueError(f"to_ratio={to_ratio!r}: with weight decay the loss rises away from ratio 1/2; leave it out.")
    source = find_hidden_layer(model, certificate.layer, certificate.next_layer)
    copied = float64_copy(model)
    hidden = find_hidden_layer(copied, certificate.layer, certificate.next_layer)
    objective = Objective(loss, data, reduction, decay)
    turned = None
    if to_ratio is None and not decay:
        turned = best_new_neuron(copied, objective, hidden, certificate.neuron)
    v = source.fan_out[:, certificate.neuron].to(certificate.curvature.v)
    split_hidden(hidden, [certificate.neuron], certificate.ratio)
    builder = PathBuilder(copied, objective, certificate.ratio)
    if abs(builder.points[0].loss - certificate.loss) > 1e-9 * max(1.0, abs(certificate.loss)):
        raise ValueError(
            f"the loss is {builder.points[0].loss:.9g}, but the certificate was made at {certificate.loss:.9g}: give "
            "the model, loss and data that it was made for."
        )
    target = (0.5 if decay else _saddle_ratio(certificate)) if to_ratio is None else to_ratio
    direction = _steepest_direction(certificate, target)
    paths = []
    if direction is not None:
        paths += [
            _along_curvature(builder, certificate, v, target, sign * direction, slide_points, steps) for sign in (1, -1)
        ]
    if turned is not None:
        paths.append(_by_turning(builder, certificate, v, turned, slide_points, steps))
    lower = [path for path in paths if path is not None]
    if not lower:
        raise ValueError(_no_way_out(certificate, target, direction is not None))
    best = min(lower, key=lambda path: path.points[-1].loss)
    return EscapePath(best.points, best.model)


def _along_curvature(
    start: PathBuilder,
    certificate: SplitCertificate,
    v: Tensor,
    target: float,
    direction: Tensor,
    slide_points: int,
    steps: int,
) -> PathBuilder | None:
    """Slide to a saddle and leave it along a direction (q, w) of negative curvature."""
    builder, split = _slid(start, certificate, v, target, slide_points)
    return builder.leave(split.displacement(builder.model, direction, target), steps)


def _by_turning(
    start: PathBuilder, certificate: SplitCertificate, v: Tensor, neuron: NewNeuron, slide_points: int, steps: int
) -> PathBuilder | None:
    """Slide to ratio 1, turn the new neuron's incoming weights, and let its outgoing weights grow."""
    builder, split = _slid(start, certificate, v, 1.0, slide_points)
    old = split.incoming()
    for k in range(1, slide_points):
        length = split.turn(old + (neuron.incoming - old) * (k / (slide_points - 1)))
        builder.add(TURN, 1.0, length)
    growth = split.growth(builder.model, -neuron.gradient)
    curvature = float(growth @ builder.objective.hessian_product(builder.model, growth))
    return builder.leave(growth * (float(neuron.gradient.square().sum()) / curvature if curvature > 0 else 1.0), steps)


def _slid(
    start: PathBuilder, certificate: SplitCertificate, v: Tensor, target: float, points: int
) -> tuple[PathBuilder, Split]:
    """Return a copy of the path that slides to a ratio, and the two neurons in it."""
    builder = start.copy()
    hidden = find_hidden_layer(builder.model, certificate.layer, certificate.next_layer)
    split = Split(hidden, certificate.neuron, hidden.width - 1, v)
    if target != certificate.ratio:
        for k in range(1, points):
            ratio = certificate.ratio + (target - certificate.ratio) * k / (points - 1)
            builder.add(SLIDE, ratio, split.slide(ratio))
    return builder, split


def _no_way_out(certificate: SplitCertificate, ratio: float, has_direction: bool) -> str:
    if has_direction:
        return "no step lowers the loss by more than rounding: try another neuron or to_ratio."
    where = f"splitting neuron {certificate.neuron} of '{certificate.layer}'"
    if certificate.curvature.weight_decay:
        return f"{where} has no direction of negative curvature: with weight decay, such a minimum has no way out."
    return f"{where} has no direction of negative curvature at ratio {ratio:g}: {certificate.judge(ratio).reason}."


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


def _steepest_direction(certificate: SplitCertificate, ratio: float) -> Tensor | None:
    """Return the most negative direction of the block of a ratio; None if there is none."""
    block = certificate.curvature.block(ratio)
    decay = certificate.curvature.weight_decay
    if not decay and torch.linalg.matrix_norm(certificate.curvature.D_orthogonal, 2) <= certificate.errors.d:
        block[: len(certificate.B), len(certificate.B) :] = 0
        block[len(certificate.B) :, : len(certificate.B)] = 0
    values, vectors = torch.linalg.eigh(block)
    return vectors[:, 0] if values[0] < 0 else None
