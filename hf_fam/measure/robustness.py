"""Feature robustness: the rise of the loss when the features that enter a layer are perturbed.

For a feature matrix A, ``E_F(A) = mean_i [ l(g(W (phi_i + A phi_i))) - l(g(W phi_i)) ]``, the label of an item held
constant (Petzka et al. 2021; from memory of the text). Averaged over random A of size delta,

    E[ E_F(delta A) ] = delta^2 / (2m) kappa + higher orders,

for A with uncorrelated entries of variance 1/m: this is what kappa means. `feature_robustness` measures the left side
by Monte Carlo and compares it with the right side.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..flatness.estimators import check_choice
from ..inputs.numbers import MOST_PROBES, require_positive_numbers, require_whole
from ..inputs.text import quote
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import REPRESENTATION
from .data import Batches, count_items, item_weights, to_device
from .feature_perturbation import MATRICES, ORTHOGONAL, perturbed, random_matrix
from .forward import LossFunction, evaluate, frozen_for_evaluation, loss_of
from .kinks import has_kinks
from .measuring import measure_relative_flatness
from .robustness_result import FeatureRobustness

__all__ = ["FeatureRobustness", "feature_robustness"]

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


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
