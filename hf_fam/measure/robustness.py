"""Feature robustness: the rise of the loss when the features that enter a layer are perturbed.

For a feature matrix A, ``E_F(A) = mean_i [ l(g(W (phi_i + A phi_i))) - l(g(W phi_i)) ]``, the label of an item held
constant (Petzka et al. 2021; from memory of the text). Averaged over random A of size delta,

    E[ E_F(delta A) ] = delta^2 / (2m) kappa + higher orders,

for A with uncorrelated entries of variance 1/m: this is what kappa means. `feature_robustness` measures the left side
by Monte Carlo and compares it with the right side.
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
from ..inputs.numbers import MOST_PROBES, require_positive_numbers, require_whole
from ..inputs.text import quote
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import REPRESENTATION, find_head, unwrap
from ..layer.linear_map import LinearMap
from .data import Batches, count_items, item_weights, to_device
from .forward import LossFunction, evaluate, frozen_for_evaluation, loss_of
from .measuring import measure_relative_flatness
from .page import escape, html_table
from .results import LayerFlatness

__all__ = ["FeatureRobustness", "feature_robustness"]

ORTHOGONAL, GAUSSIAN, RANK_ONE = "orthogonal", "gaussian", "rank_one"
MATRICES = (ORTHOGONAL, GAUSSIAN, RANK_ONE)

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

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
    """Perturb the features of a layer at random and measure the rise of the loss.

    The result compares the rise with kappa.

    Every random matrix is applied to all items, at every size, and with both signs, which removes odd orders. Cost:
    ``1 + 2 * samples * len(deltas)`` forward passes of the data, and kappa.

    Args:
        model: the trained model; it is left as it was.
        dataset_or_dataloader: as for `measure_relative_flatness`.
        layer: ``"head"``, ``"representation"``, a dotted name or a module.
        deltas: sizes of ``delta A phi`` relative to phi, increasing.
        matrices: ``"orthogonal"`` (uniformly distributed, Haar), ``"gaussian"`` or ``"rank_one"`` (two random sign
            vectors). Entries have variance 1/m in all three, so all have the same second order.
        samples: number of matrices.
        batch_size: items in a batch, without a loader.
        collate_fn: makes a batch of items, without a loader.
        loss_fn: ``loss_fn(model, batch)``, the mean loss of a batch; by default ``model(**batch).loss``.
        seed: seed of the matrices.
        progress: show a progress bar; by default on a terminal.

    Raises:
        ValueError: the kind of matrices is unknown, deltas are not positive and increasing, there are fewer than 2
            samples, or see `measure_relative_flatness`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        >>> data = torch.utils.data.TensorDataset(torch.randn(60, 4).double(), torch.randint(0, 3, (60,)))
        >>> def loss_fn(model, batch):
        ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> curve = feature_robustness(model, data, "head", (0.01, 0.1), loss_fn=loss_fn)
        >>> abs(curve.measured[0] - curve.predicted[0]) < 5 * curve.standard_errors[0]
        True
    """
    check_choice("matrices", matrices, MATRICES)
    sizes = require_positive_numbers("deltas", deltas, more=" in increasing order, such as (0.01, 0.1, 1.0)")
    if list(sizes) != sorted(set(sizes)):
        raise ValueError(f"deltas={quote(deltas)}: give positive numbers in increasing order.")
    samples = require_whole("samples", samples, 2, MOST_PROBES, more=", for a standard error")
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collate_fn, "loss_fn": loss_fn, "seed": seed}
    (flatness,) = measure_relative_flatness(
        model, dataset_or_dataloader, layer, ("trace",), probes=8, progress=progress, **options
    )
    batches = Batches(dataset_or_dataloader, batch_size, collate_fn, seed=seed)
    feature_layer = FeatureLayer(model, layer)
    with frozen_for_evaluation(model) as frozen, torch.no_grad():
        loss, rises, items, rounding = _rises(
            frozen, feature_layer, batches, sizes, matrices, samples, loss_fn, seed, progress
        )
    spread = rises.std(0) / math.sqrt(samples)
    scale = [d**2 / (2 * flatness.in_features) for d in sizes]
    kappa_error = 0.0 if math.isnan(flatness.standard_error_probes) else flatness.standard_error_probes
    return FeatureRobustness(
        layer=flatness.layer,
        matrices=matrices,
        deltas=sizes,
        measured=tuple(rises.mean(0).tolist()),
        standard_errors=tuple(spread.tolist()),
        predicted=tuple(s * flatness.kappa for s in scale),
        predicted_errors=tuple(s * kappa_error for s in scale),
        kappa=flatness.kappa,
        in_features=flatness.in_features,
        loss=loss,
        num_items=items,
        samples=samples,
        piecewise_linear=has_kinks(model, dataset_or_dataloader, feature_layer, flatness, options),
        rounding=rounding,
    )


def random_matrix(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """Return a random m x m matrix, in float64.

    Its entries have mean 0 and variance 1/m.

    Args:
        kind: one of ``MATRICES``.
        size: m.
        generator: source of the random numbers.

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
    model: nn.Module, data: Any, layer: FeatureLayer, flatness: LayerFlatness, options: dict[str, Any]
) -> bool | None:
    """Return True if the tail is piecewise linear but not linear.

    Then the Hessian is the Gauss-Newton matrix. None if it is unknown.

    Args:
        model: the model.
        data: the data.
        layer: the feature layer. The head has no network above it.
        flatness: its measurement.
        options: how it was measured.
    """
    _, head = find_head(unwrap(model))
    if head is layer.module:
        return False
    try:
        gauss_newton, hessian = (
            measure_relative_flatness(
                model, data, layer.module, ("trace",), estimator=name, probes=1, progress=False, **options
            )[0].kappa
            for name in ("gauss_newton", "hessian")
        )
    except (TypeError, ValueError):  # no layer that makes logits
        return None
    tolerance = 1e-6 if next(model.parameters()).dtype == torch.float64 else 1e-3
    if not abs(gauss_newton - hessian) <= tolerance * abs(gauss_newton):  # also for NaN
        return False
    return not _is_affine(model, data, layer, head, options)


def _is_affine(model: nn.Module, data: Any, layer: FeatureLayer, head: nn.Module, options: dict[str, Any]) -> bool:
    """Return True if the logits are an affine function of the layer's output.

    They are compared on the first batch. An affine tail has no kinks.
    """
    outputs: list[Tensor] = []
    matrix = random_matrix(GAUSSIAN, layer.in_features, torch.Generator().manual_seed(0))
    matrices = matrix.float().expand(layer.linear_map.groups, -1, -1)
    batches = Batches(data, options["batch_size"], options["collate_fn"], seed=options["seed"]).first
    handle = head.register_forward_hook(lambda module, args, output: outputs.append(output.double()))
    try:
        with frozen_for_evaluation(model) as frozen, torch.no_grad():
            device = next(frozen.parameters()).device
            first_batch = to_device(batches(), device)
            for factor in (0.0, 1.0, -1.0):
                with perturbed(layer, factor * matrices.to(device)):
                    evaluate(options["loss_fn"] or loss_of, frozen, first_batch)
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
    """Return mean loss, its mean rises, the number of items, and the rounding.

    The rises have the shape ``(samples, deltas)``.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    m, groups = layer.in_features, layer.linear_map.groups
    matrices = [
        torch.stack([random_matrix(kind, m, generator) for _ in range(groups)]).to(device) if device.type != "mps"
        else torch.stack([random_matrix(kind, m, generator) for _ in range(groups)]).float().to(device)
        for _ in range(samples)
    ]  # fmt: skip
    total, weight, items, rounding = 0.0, 0.0, 0, 0.0
    rises = torch.zeros(samples, len(deltas), dtype=torch.float64)
    loss_fn = loss_fn or loss_of
    numbered: Any = batches.of_this_process()
    if sys.stderr.isatty() if progress is None else progress:
        from tqdm.auto import tqdm

        numbered = tqdm(numbered, desc="feature robustness", total=batches.length, leave=False)
    for _, batch in numbered:
        batch = to_device(batch, device)
        weights = item_weights(model, batch, count_items(batch))
        if not weights.any():
            continue
        omega = float(weights.sum())
        loss = evaluate(loss_fn, model, batch)
        unperturbed = float(loss)
        total, weight, items = total + omega * unperturbed, weight + omega, items + int(weights.count_nonzero())
        rounding += omega * abs(unperturbed) * torch.finfo(loss.dtype).eps
        for k, matrix in enumerate(matrices):
            for j, delta in enumerate(deltas):
                for signed in (delta, -delta):
                    with perturbed(layer, signed * matrix):
                        rises[k, j] += omega * (float(evaluate(loss_fn, model, batch)) - unperturbed) / 2
    return total / weight, rises / weight, items, rounding / weight


@contextmanager
def perturbed(layer: FeatureLayer, matrices: Tensor) -> Iterator[None]:
    """Replace phi by ``phi + A phi`` for the layer inside the block.

    Args:
        layer: the feature layer.
        matrices: A of every group, shape ``(G, m, m)``.
    """

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        change = _perturbation(layer.linear_map, features, matrices)
        return output + layer.linear_map.outputs(change).to(output.dtype)

    handle = layer.module.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _perturbation(linear_map: LinearMap, features: Tensor, matrices: Tensor) -> Tensor:
    """Return ``W A phi`` of every row, channels last."""
    rows = linear_map.feature_rows(features)
    rows = rows.to(wide(rows.dtype)).unflatten(-1, (linear_map.groups, -1))
    return linear_map.times(torch.einsum("gij,...gj->...gi", matrices.to(rows.dtype), rows).flatten(-2))
