"""Feature robustness: how the loss rises when the features that enter a layer are perturbed.

For a feature matrix A, ``E_F(A) = mean_i [ l(g(W (phi_i + A phi_i))) - l(g(W phi_i)) ]``, the label of an item held
constant (Petzka et al. 2021; from memory of the text). Averaged over random A of size delta,

    E[ E_F(delta A) ] = delta^2 / (2m) kappa + higher orders,

for A with uncorrelated entries of variance 1/m: this is what kappa means. `feature_robustness` measures the left side
by Monte Carlo and sets it beside the right one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import wide
from ..flatness.estimators import check_choice
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import REPRESENTATION, find_head, unwrap
from ..layer.linear_map import LinearMap
from .data import Batches, count_items, item_weights, to_device
from .forward import LossFunction, evaluate, looked_at, loss_of
from .measuring import measure_relative_flatness
from .results import LayerFlatness

__all__ = ["FeatureRobustness", "feature_robustness"]

ORTHOGONAL, GAUSSIAN, RANK_ONE = "orthogonal", "gaussian", "rank_one"
MATRICES = (ORTHOGONAL, GAUSSIAN, RANK_ONE)

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# Measured and predicted rise are said to part when they differ by so many standard errors, and by so much.
_ERRORS, _PART = 3.0, 0.1


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
        num_items: how many items.
        samples: how many random matrices, each with its negative.
        piecewise_linear: whether the network above the layer is piecewise linear with kinks (ReLU); None if unknown.
        rounding: what the mean loss is rounded by at most, in its floating-point type; an error of the rise.
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
    def parts_at(self) -> float | None:
        """The smallest delta at which measured and predicted rise differ by more than their errors, and by 10 %."""
        for delta, x, error, p, p_error in zip(
            self.deltas, self.measured, self.standard_errors, self.predicted, self.predicted_errors, strict=True
        ):
            limit = _ERRORS * math.hypot(error, p_error, self.rounding)
            if abs(x - p) > limit and abs(x - p) > _PART * abs(p):
                return delta
        return None

    @property
    def unresolved_up_to(self) -> float | None:
        """The largest delta at which both rises are lost in the rounding of the loss; None if there is none."""
        limit = _ERRORS * self.rounding
        rises = zip(self.deltas, self.measured, self.predicted, strict=True)
        return max((delta for delta, x, p in rises if max(abs(x), abs(p)) < limit), default=None)

    @property
    def verdict(self) -> str:
        """What the curves say, in a sentence, and one more where the precision of the loss is the limit."""
        lost = self.unresolved_up_to
        if lost is None:
            return self._comparison
        return (
            f"{self._comparison} Up to delta = {lost:g} the precision of the loss ({self.rounding:.1g}) is the limit: "
            "the rise is lost in rounding. A model in a wider floating-point type, such as model.double(), shows it."
        )

    @property
    def _comparison(self) -> str:
        delta = self.parts_at
        if delta is None:
            return (
                f"Within their errors, the measured rise agrees with delta^2/(2m) kappa for all delta up to "
                f"{self.deltas[-1]:g}."
            )
        k = self.deltas.index(delta)
        ratio = self.measured[k] / self.predicted[k] if self.predicted[k] else math.inf
        start = (
            f"From delta = {delta:g} on the measured rise parts from delta^2/(2m) kappa (there it is {ratio:.2g} times)"
        )
        if self.piecewise_linear:
            return (
                f"{start}: the network above the layer is piecewise linear, and kappa, a second derivative, does not "
                "see the kinks (of ReLU, say) that the perturbation crosses."
            )
        return f"{start}: higher orders of the loss."

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

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps({**asdict(self), "parts_at": self.parts_at, "verdict": self.verdict}, indent=2)

    def plot(self, path: str | Path) -> None:
        """Draw measured and predicted rise in one figure.

        Args:
            path: the file to write; its ending is the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .plotting import robustness_curve, save

        save(robustness_curve(self), path)


def feature_robustness(
    model: nn.Module,
    dataset_or_dataloader: Any,
    layer: str | nn.Module = REPRESENTATION,
    deltas: Sequence[float] = DELTAS,
    *,
    matrices: str = ORTHOGONAL,
    samples: int = 8,
    batch_size: int = 32,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FeatureRobustness:
    """Perturb the features that enter a layer by random matrices, and compare the rise of the loss with kappa.

    Every random matrix is applied to all items, at every size, and with both signs, which removes odd orders. Cost:
    ``1 + 2 * samples * len(deltas)`` forward passes of the data, and kappa.

    Args:
        model: as it was trained; untouched.
        dataset_or_dataloader: as for `measure_relative_flatness`.
        layer: ``"head"``, ``"representation"``, a dotted name or a module.
        deltas: sizes of ``delta A phi`` relative to phi, increasing.
        matrices: ``"orthogonal"`` (uniformly distributed, Haar), ``"gaussian"`` or ``"rank_one"`` (two random sign
            vectors). Entries have variance 1/m in all three, so all have the same second order.
        samples: how many matrices.
        batch_size: items of a batch, where no loader is given.
        collate_fn: how items become a batch, where no loader is given.
        loss_fn: ``loss_fn(model, batch)``, the mean loss of a batch; by default ``model(**batch).loss``.
        seed: of the matrices.
        progress: show a progress bar; by default on a terminal.

    Raises:
        ValueError: an unknown kind of matrices; deltas that are not positive and increasing; fewer than 2 samples; and
            what `measure_relative_flatness` raises.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        >>> data = torch.utils.data.TensorDataset(torch.randn(60, 4).double(), torch.randint(0, 3, (60,)))
        >>> def loss_fn(model, batch):
        ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> found = feature_robustness(model, data, "head", (0.01, 0.1), loss_fn=loss_fn)
        >>> abs(found.measured[0] - found.predicted[0]) < 5 * found.standard_errors[0]
        True
    """
    check_choice("matrices", matrices, MATRICES)
    sizes = tuple(float(d) for d in deltas)
    if not sizes or not all(0 < d < math.inf for d in sizes) or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"deltas={deltas!r}: give positive numbers in increasing order, such as (0.01, 0.1, 1.0).")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"samples={samples!r}: give a whole number of at least 2, for a standard error.")
    given: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collate_fn, "loss_fn": loss_fn, "seed": seed}
    (flat,) = measure_relative_flatness(
        model, dataset_or_dataloader, layer, ("trace",), probes=8, progress=progress, **given
    )
    batches = Batches(dataset_or_dataloader, batch_size, collate_fn, seed=seed)
    feature_layer = FeatureLayer(model, layer)
    with looked_at(model) as seen, torch.no_grad():
        plain, rises, items, rounding = _rises(
            seen, feature_layer, batches, sizes, matrices, samples, loss_fn, seed, progress
        )
    spread = rises.std(0) / math.sqrt(samples)
    scale = [d**2 / (2 * flat.in_features) for d in sizes]
    error = 0.0 if math.isnan(flat.standard_error_probes) else flat.standard_error_probes
    return FeatureRobustness(
        layer=flat.layer,
        matrices=matrices,
        deltas=sizes,
        measured=tuple(rises.mean(0).tolist()),
        standard_errors=tuple(spread.tolist()),
        predicted=tuple(s * flat.kappa for s in scale),
        predicted_errors=tuple(s * error for s in scale),
        kappa=flat.kappa,
        in_features=flat.in_features,
        loss=plain,
        num_items=items,
        samples=samples,
        piecewise_linear=has_kinks(model, dataset_or_dataloader, feature_layer, flat, given),
        rounding=rounding,
    )


def random_matrix(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """A random m x m matrix whose entries have mean 0 and variance 1/m, in float64.

    Args:
        kind: one of ``MATRICES``.
        size: m.
        generator: where it comes from.

    Examples:
        >>> import torch
        >>> q = random_matrix("orthogonal", 3, torch.Generator().manual_seed(0))
        >>> torch.allclose(q @ q.T, torch.eye(3, dtype=torch.float64))
        True
    """
    draw = {"generator": generator, "dtype": torch.float64}
    if kind == RANK_ONE:
        r, a = ((torch.rand(size, **draw) < 0.5).double() * 2 - 1 for _ in range(2))  # type: ignore[call-overload]
        return torch.outer(r, a) / math.sqrt(size)
    normal: Tensor = torch.randn(size, size, **draw)  # type: ignore[call-overload]
    if kind == GAUSSIAN:
        return normal / math.sqrt(size)
    q, upper = torch.linalg.qr(normal)
    return q * upper.diagonal().sign()  # with these signs the distribution is uniform (Mezzadri 2007)


def has_kinks(
    model: nn.Module, data: Any, layer: FeatureLayer, flat: LayerFlatness, given: dict[str, Any]
) -> bool | None:
    """Whether the tail is piecewise linear but not linear: then the Hessian is the Gauss-Newton matrix.

    Args:
        model: the model.
        data: the data.
        layer: the feature layer; above the head there is nothing.
        flat: its measurement.
        given: how it was measured.
    """
    _, head = find_head(unwrap(model))
    if head is layer.module:
        return False
    try:
        newton, hessian = (
            measure_relative_flatness(
                model, data, layer.module, ("trace",), estimator=name, probes=1, progress=False, **given
            )[0].kappa
            for name in ("gauss_newton", "hessian")
        )
    except (TypeError, ValueError):  # no layer that makes logits
        return None
    tolerance = 1e-6 if next(model.parameters()).dtype == torch.float64 else 1e-3
    return abs(newton - hessian) <= tolerance * abs(newton) and not _is_affine(model, data, layer, head, given)


def _is_affine(model: nn.Module, data: Any, layer: FeatureLayer, head: nn.Module, given: dict[str, Any]) -> bool:
    """Whether the logits are an affine function of the layer's output, on the first batch: then there are no kinks."""
    outputs: list[Tensor] = []
    matrix = random_matrix(GAUSSIAN, layer.in_features, torch.Generator().manual_seed(0))
    matrices = matrix.float().expand(layer.linear_map.groups, -1, -1)
    batch = Batches(data, given["batch_size"], given["collate_fn"], seed=given["seed"]).first
    handle = head.register_forward_hook(lambda module, args, output: outputs.append(output.double()))
    try:
        with looked_at(model) as seen, torch.no_grad():
            device = next(seen.parameters()).device
            first = to_device(batch(), device)
            for factor in (0.0, 1.0, -1.0):
                with perturbed(layer, factor * matrices.to(device)):
                    evaluate(given["loss_fn"] or loss_of, seen, first)
    finally:
        handle.remove()
    middle, above, below = outputs
    return bool((above + below - 2 * middle).abs().max() <= 1e-4 * (above - below).abs().max())


def _rises(
    model: nn.Module,
    layer: FeatureLayer,
    batches: Batches,
    deltas: tuple[float, ...],
    kind: str,
    samples: int,
    loss_fn: LossFunction | None,
    seed: int,
    progress: bool | None,
) -> tuple[float, Tensor, int, float]:
    """Mean loss; its mean rise for every matrix and delta, ``(samples, deltas)``; number of items; rounding."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    m, groups = layer.in_features, layer.linear_map.groups
    drawn = [
        torch.stack([random_matrix(kind, m, generator) for _ in range(groups)]).to(device) if device.type != "mps"
        else torch.stack([random_matrix(kind, m, generator) for _ in range(groups)]).float().to(device)
        for _ in range(samples)
    ]  # fmt: skip
    total, weight, items, rounding = 0.0, 0.0, 0, 0.0
    rises = torch.zeros(samples, len(deltas), dtype=torch.float64)
    loss_fn = loss_fn or loss_of
    numbered: Any = batches.mine()
    if sys.stderr.isatty() if progress is None else progress:
        from tqdm.auto import tqdm

        numbered = tqdm(numbered, desc="feature robustness", total=batches.length, leave=False)
    for _, given in numbered:
        batch = to_device(given, device)
        weights = item_weights(model, batch, count_items(batch))
        if not weights.any():
            continue
        omega = float(weights.sum())
        loss = evaluate(loss_fn, model, batch)
        plain = float(loss)
        total, weight, items = total + omega * plain, weight + omega, items + int(weights.count_nonzero())
        rounding += omega * abs(plain) * torch.finfo(loss.dtype).eps
        for k, matrix in enumerate(drawn):
            for j, delta in enumerate(deltas):
                for signed in (delta, -delta):
                    with perturbed(layer, signed * matrix):
                        rises[k, j] += omega * (float(evaluate(loss_fn, model, batch)) - plain) / 2
    return total / weight, rises / weight, items, rounding / weight


@contextmanager
def perturbed(layer: FeatureLayer, matrices: Tensor) -> Iterator[None]:
    """phi becomes ``phi + A phi`` for the layer inside the block.

    Args:
        layer: the feature layer.
        matrices: A of every group, shape ``(G, m, m)``.
    """

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        moved = _moved(layer.linear_map, features, matrices)
        return output + layer.linear_map.outputs(moved).to(output.dtype)

    handle = layer.module.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _moved(linear_map: LinearMap, features: Tensor, matrices: Tensor) -> Tensor:
    """``W A phi`` of every row, channels last."""
    rows = linear_map.feature_rows(features)
    rows = rows.to(wide(rows.dtype)).unflatten(-1, (linear_map.groups, -1))
    return linear_map.times(torch.einsum("gij,...gj->...gi", matrices.to(rows.dtype), rows).flatten(-2))
