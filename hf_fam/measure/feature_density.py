"""The density of the features that enter a layer: a kernel density estimate with a bandwidth for each item."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.numbers import LARGEST_SEED, require_positive_numbers, require_whole
from ..inputs.packages import optional_packages
from ..layer.finding import REPRESENTATION
from .forward import LossFunction
from .item_features import item_features
from .robustness import DELTAS

__all__ = ["FeatureDensity", "feature_density"]

# With more features than this, the density is that of their principal components.
MOST_DIMENSIONS = 20

# Pairs of items that are compared at once.
_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class FeatureDensity:
    """Cross-validated log density of held-out features.

    Attributes:
        layer: dotted name.
        deltas: relative bandwidths.
        log_densities: mean log density of a held-out item, for every delta; higher is better.
        standard_errors: of the means, from the items.
        dimensions: dimensions of the space of the estimate.
        in_features: m.
        explained_variance: the fraction of variance in the principal components; 1 without them.
        num_items: number of items, without those whose features are all 0.
        folds: number of folds.
    """

    layer: str
    deltas: tuple[float, ...]
    log_densities: tuple[float, ...]
    standard_errors: tuple[float, ...]
    dimensions: int
    in_features: int
    explained_variance: float
    num_items: int
    folds: int

    @property
    def best_delta(self) -> float:
        """Return the bandwidth under which held-out items are most likely."""
        return self.deltas[max(range(len(self.deltas)), key=lambda k: self.log_densities[k])]


def feature_density(
    model: nn.Module,
    dataset_or_dataloader: Any,
    layer: str | nn.Module = REPRESENTATION,
    deltas: Sequence[float] = DELTAS,
    *,
    folds: int = 5,
    most_dimensions: int = MOST_DIMENSIONS,
    batch_size: int = 32,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> FeatureDensity:
    """Estimate the density of a layer's features by cross-validation.

    The kernel density is estimated for every bandwidth.

    The kernel around item i has standard deviation ``delta ||phi_i|| / sqrt(m)`` in every direction: it is as wide as
    the Gaussian feature perturbation ``delta A phi_i`` of `feature_robustness`. Features are kept in memory.
    If the layer has several rows for an item (tokens, positions), their mean is taken. Padding is excluded if the batch
    has an ``attention_mask`` of the rows' shape. Items whose features are all 0 (dead ReLUs) are left out with a
    warning, because their kernel has no width.

    Args:
        model: the model; it is left as it was.
        dataset_or_dataloader: as for `measure_relative_flatness`.
        layer: the feature layer.
        deltas: bandwidths relative to the length of each item's features.
        folds: number of folds of the cross-validation.
        most_dimensions: with more features, as many principal components are used. Every fold has the same number, at
            most the number of items in the smallest training part.
        batch_size: items in a batch, without a loader.
        collate_fn: makes a batch of items, without a loader.
        loss_fn: runs the model; by default ``model(**batch)``.
        seed: seed of the folds.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: there are fewer items than folds, an argument is out of range, or the features are all 0 or not
            finite.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> data = [(torch.randn(4), k % 2) for k in range(20)]
        >>> def loss_fn(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> density = feature_density(model, data, "2", deltas=(0.1, 1.0), loss_fn=loss_fn)
        >>> density.num_items, len(density.log_densities)
        (20, 2)
    """
    sizes = require_positive_numbers("deltas", deltas, more=", such as (0.01, 0.1, 1.0)")
    folds, seed = require_whole("folds", folds, 2), require_whole("seed", seed, 0, LARGEST_SEED)
    most_dimensions = require_whole("most_dimensions", most_dimensions)
    items = item_features(
        model, dataset_or_dataloader, layer, batch_size=batch_size, collate_fn=collate_fn, loss_fn=loss_fn, seed=seed
    )
    features = _nonzero_items(items.features, items.layer)
    if not 2 <= folds <= len(features):
        raise ValueError(f"folds={folds!r}: give a whole number from 2 to the number of items, {len(features)}.")
    densities, dimensions, explained = _cross_validate(features, sizes, folds, most_dimensions, seed)
    error = densities.std(1) / math.sqrt(len(features))
    return FeatureDensity(
        layer=items.layer,
        deltas=sizes,
        log_densities=tuple(densities.mean(1).tolist()),
        standard_errors=tuple(error.tolist()),
        dimensions=dimensions,
        in_features=items.features.shape[1],
        explained_variance=explained,
        num_items=len(features),
        folds=folds,
    )


def log_kernel_density(points: Tensor, centers: Tensor, bandwidths: Tensor) -> Tensor:
    """Return the log density of a mixture of round Gaussians.

    There is one Gaussian with its own bandwidth around every center.

    Args:
        points: points to evaluate the density at, shape ``(n, k)``.
        centers: shape ``(N, k)``.
        bandwidths: standard deviations, positive, shape ``(N,)``.

    Returns:
        Shape ``(n,)``.

    Examples:
        >>> import torch
        >>> log_kernel_density(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1)).exp()  # 1 / sqrt(2 pi)
        tensor([0.3989])
    """
    k = points.shape[1]
    constant = -k * bandwidths.log() - 0.5 * k * math.log(2 * math.pi) - math.log(len(centers))
    densities = []
    for chunk in points.split(max(1, _PAIRS_AT_ONCE // len(centers))):
        squares = torch.cdist(chunk, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
        densities.append(torch.logsumexp(constant - squares / (2 * bandwidths.square()), 1))
    return torch.cat(densities)


def _nonzero_items(features: Tensor, layer: str) -> Tensor:
    """Return the items whose features are not all 0, shape ``(items, m)``."""
    lengths = torch.linalg.vector_norm(features, dim=1)
    kept = features[lengths > 1e-12 * lengths.max()]  # 0 up to rounding
    zeros = len(features) - len(kept)
    if not len(kept):
        raise ValueError(
            f"all features of layer '{layer}' are 0 for all {zeros} items (dead ReLUs?), so kernels of width delta "
            "||phi|| do not exist: choose another layer."
        )
    if zeros:
        warnings.warn(
            f"{zeros} of {len(features)} items are left out: all their features of layer '{layer}' are 0, and kernels "
            "of width 0 do not exist.",
            stacklevel=3,
        )
    return kept


def _cross_validate(
    features: Tensor, deltas: Sequence[float], folds: int, most_dimensions: int, seed: int
) -> tuple[Tensor, int, float]:
    """Return the log density of every item in its held-out fold.

    Its shape is ``(deltas, items)``. Dimensions and explained variance follow.
    """
    with optional_packages("representativeness", "measure"):
        from sklearn.decomposition import PCA
        from sklearn.model_selection import KFold

    densities = torch.zeros(len(deltas), len(features), dtype=torch.float64)
    dimensions, explained = features.shape[1], []
    splits = list(KFold(folds, shuffle=True, random_state=seed).split(features.numpy()))
    # Every fold has the same number of dimensions, because densities in different dimensions have no mean.
    components = min(most_dimensions, features.shape[1], *(len(train_items) for train_items, _ in splits))
    for train_items, test_items in splits:
        train, test = features[train_items], features[test_items]
        lengths = torch.linalg.vector_norm(train, dim=1)
        if features.shape[1] > most_dimensions:
            pca = PCA(components, svd_solver="full").fit(train.numpy())
            train, test = (torch.from_numpy(pca.transform(x.numpy())) for x in (train, test))
            dimensions = components
            explained.append(float(pca.explained_variance_ratio_.sum()))
        spread = lengths / math.sqrt(features.shape[1])
        for k, delta in enumerate(deltas):
            densities[k, test_items] = log_kernel_density(test, train, delta * spread)
    return densities, dimensions, sum(explained) / len(explained) if explained else 1.0
