"""Representativeness of a training set in feature space, estimated from the training set alone.

The features are divided into folds. A linear predictor is fitted to the other folds and scored on the held-out one
(Petzka et al. 2021, as in the released code's ``interpolatingness.py``). The kernel density around the features has a
separate bandwidth ``delta ||phi_i||`` for every item.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..data.checks import IGNORED
from ..inputs.numbers import LARGEST_SEED, MOST_PROBES, require_positive_numbers, require_whole
from ..inputs.packages import optional_packages
from ..inputs.text import quote
from ..layer.finding import REPRESENTATION
from .forward import LossFunction
from .generalization_gap import GapTerms
from .item_features import item_features
from .robustness import DELTAS

__all__ = ["CrossValidatedGap", "cross_validated_gap", "gap_of_features"]

_NEEDS = "the cross-validated gap"


@dataclass(frozen=True)
class CrossValidatedGap:
    """The generalization gap of a predictor on fixed features, without a test set.

    For every delta, ``gap = representativeness + robustness``.

    Attributes:
        deltas: relative bandwidths.
        representativeness: mean loss of held-out items minus mean loss under the kernel density.
        standard_errors: of the representativeness, from the items.
        robustness: mean loss under the kernel density minus mean loss of the fitted items.
        held_out_loss: mean loss of held-out items.
        fitted_loss: mean loss of the items that the predictor was fitted to.
        num_items: number of items with a label.
        in_features: m.
        folds: number of folds.
        predictor: class name of the predictor.
    """

    deltas: tuple[float, ...]
    representativeness: tuple[float, ...]
    standard_errors: tuple[float, ...]
    robustness: tuple[float, ...]
    held_out_loss: float
    fitted_loss: float
    num_items: int
    in_features: int
    folds: int
    predictor: str

    @property
    def gap(self) -> float:
        """Return the loss of held-out items minus the loss of fitted ones."""
        return self.held_out_loss - self.fitted_loss

    @property
    def terms(self) -> list[GapTerms]:
        """Return the parts of the gap at every delta, as `decompose_gap` returns them with a test set."""
        parts = zip(self.deltas, self.robustness, self.representativeness, strict=True)
        return [GapTerms(delta, rise, rest, self.gap) for delta, rise, rest in parts]

    def __str__(self) -> str:
        lines = [
            f"{self.folds} folds of {self.num_items} items with {self.in_features} features, {self.predictor}: "
            f"held-out loss {self.held_out_loss:.4g}, fitted loss {self.fitted_loss:.4g}",
            "",
            f"{'delta':>8}  {'representativeness':>24}  {'robustness':>12}",
        ]
        for term, error in zip(self.terms, self.standard_errors, strict=True):
            lines.append(
                f"{term.delta:>8g}  {term.representativeness:>12.4g} ± {error:<9.2g}  {term.robustness:>12.4g}"
            )
        return "\n".join(lines)


def cross_validated_gap(
    model: nn.Module,
    train_dataset: Any,
    layer: str | nn.Module = REPRESENTATION,
    deltas: Sequence[float] = DELTAS,
    *,
    folds: int = 10,
    samples: int = 8,
    predictor: Any = None,
    batch_size: int = 32,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> CrossValidatedGap:
    """Split the generalization gap on a layer's features, from training items alone.

    The predictor is fitted anew in every fold, and the features stay. If the layers below were trained on the same
    items, the features of held-out items are not those of new items. Then the gap is too small.

    Args:
        model: the model; it is left as it was.
        train_dataset: as for `measure_relative_flatness`, with one label for each item. In a batch that is a tuple, the
            last tensor is the labels. Features of several rows (tokens) are averaged.
        layer: the feature layer.
        deltas: bandwidths relative to the length of each item's features.
        folds: number of folds of the cross-validation.
        samples: random perturbations of every item; each is used with both signs.
        predictor: see `gap_of_features`.
        batch_size: items in a batch, without a loader.
        collate_fn: makes a batch of items, without a loader.
        loss_fn: runs the model; by default ``model(**batch)``.
        seed: seed of the folds and of the perturbations.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: there are no labels, or see `gap_of_features`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> data = [(torch.randn(4), k % 2) for k in range(20)]
        >>> def loss_fn(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> result = cross_validated_gap(model, data, "2", deltas=(0.1, 1.0), folds=4, loss_fn=loss_fn)
        >>> result.num_items, len(result.representativeness)
        (20, 2)
    """
    sizes, folds, samples, seed = _checked_options(deltas, folds, samples, seed, predictor)
    items = item_features(
        model, train_dataset, layer, batch_size=batch_size, collate_fn=collate_fn, loss_fn=loss_fn, seed=seed
    )
    if items.labels is None:
        raise ValueError(
            "the batches have no labels: give a column 'labels', or batches (inputs, labels) of two tensors."
        )
    return gap_of_features(
        items.features, items.labels, sizes, folds=folds, samples=samples, predictor=predictor, seed=seed
    )


def gap_of_features(
    features: Any,
    labels: Any,
    deltas: Sequence[float] = DELTAS,
    *,
    folds: int = 10,
    samples: int = 8,
    predictor: Any = None,
    seed: int = 0,
) -> CrossValidatedGap:
    """Split the generalization gap on features of your own by cross-validation.

    The kernel around item i is Gaussian with standard deviation ``delta ||phi_i|| / sqrt(m)`` in every direction, as in
    `feature_density` and `feature_robustness`. An item keeps its label inside its kernel. The loss is the
    cross-entropy for classes, and the squared error for floating-point labels.

    Args:
        features: shape ``(items, m)``.
        labels: classes or numbers, shape ``(items,)``. Items of class -100 are left out.
        deltas: bandwidths relative to the length of each item's features.
        folds: number of folds, stratified by class.
        samples: random perturbations of every item; each is used with both signs.
        predictor: a scikit-learn classifier with ``predict_proba`` for classes, or a regressor for numbers. By default
            scikit-learn's ``LogisticRegression`` or ``Ridge``.
        seed: seed of the folds and of the perturbations.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: the predictor is none of scikit-learn's kind.
        ValueError: an argument is out of range, the features are not finite, there are fewer items than folds, or a
            class has a single item.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> result = gap_of_features(x, y, deltas=(0.1,), folds=5)
        >>> abs(result.gap - result.representativeness[0] - result.robustness[0]) < 1e-12
        True
    """
    sizes, folds, samples, seed = _checked_options(deltas, folds, samples, seed, predictor)
    x, y = _checked_items(features, labels, folds)
    classes = not np.issubdtype(y.dtype, np.floating)
    fitted_to, splits = _predictor(predictor, classes), _splits(x, y, folds, seed, classes)
    generator = np.random.default_rng(seed)
    widths = np.linalg.norm(x, axis=1, keepdims=True) / math.sqrt(x.shape[1])
    noise = [widths * generator.standard_normal(x.shape) for _ in range(samples)]
    held_out, fitted, kernel = np.zeros(len(x)), np.zeros(len(x)), np.zeros((len(sizes), len(x)))
    for train, test in splits:
        losses = _fitted_losses(fitted_to, x[train], y[train], classes)
        held_out[test] = losses(x[test], y[test])
        fitted[train] += losses(x[train], y[train]) / (folds - 1)
        for k, delta in enumerate(sizes):
            for change in noise:
                for signed in (delta, -delta):
                    perturbed = losses(x[train] + signed * change[train], y[train])
                    kernel[k, train] += perturbed / (2 * samples * (folds - 1))
    differences = held_out - kernel
    return CrossValidatedGap(
        deltas=sizes,
        representativeness=tuple(differences.mean(1).tolist()),
        standard_errors=tuple((differences.std(1, ddof=1) / math.sqrt(len(x))).tolist()),
        robustness=tuple((kernel - fitted).mean(1).tolist()),
        held_out_loss=float(held_out.mean()),
        fitted_loss=float(fitted.mean()),
        num_items=len(x),
        in_features=x.shape[1],
        folds=folds,
        predictor=type(fitted_to).__name__,
    )


def _checked_options(
    deltas: Sequence[float], folds: int, samples: int, seed: int, predictor: Any
) -> tuple[tuple[float, ...], int, int, int]:
    """Return deltas, folds, samples and seed as numbers."""
    if predictor is not None and (isinstance(predictor, type) or not hasattr(predictor, "get_params")):
        raise TypeError(
            f"predictor={quote(predictor)}: give an estimator of scikit-learn, such as LogisticRegression()."
        )
    return (
        require_positive_numbers("deltas", deltas, more=", such as (0.01, 0.1, 1.0)"),
        require_whole("folds", folds, 2),
        require_whole("samples", samples, 1, MOST_PROBES),
        require_whole("seed", seed, 0, LARGEST_SEED),
    )


def _checked_items(features: Any, labels: Any, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features in float64 and labels of the items that have one."""
    x, y = (np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v) for v in (features, labels))
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"features have the shape {x.shape}: give one row for each item, shape (items, m).")
    if y.shape != x.shape[:1]:
        raise ValueError(f"labels have the shape {y.shape}: give one label for each of the {len(x)} items.")
    x = x.astype(np.float64)
    if np.issubdtype(y.dtype, np.signedinteger):
        x, y = x[y != IGNORED], y[y != IGNORED]
    for name, values in (("features", x), ("labels", y)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"the {name} contain NaN or infinity: give finite numbers.")
    if len(x) < folds:
        raise ValueError(f"folds={folds}: give a whole number from 2 to the number of items with a label, {len(x)}.")
    if y.dtype.kind != "f":
        names, counts = np.unique(y, return_counts=True)
        if len(names) < 2:
            raise ValueError("all items have the same class: give items of at least two classes.")
        if counts.min() < 2:
            rare = quote(names[counts.argmin()].item())
            raise ValueError(f"class {rare} has one item: give at least two of each class, or leave it out.")
        if counts.max() < folds:
            raise ValueError(f"folds={folds}: no class has that many items, give at most {counts.max()}.")
    return x, y


def _predictor(predictor: Any, classes: bool) -> Any:
    """Return an estimator that can be fitted, without changing the user's."""
    with optional_packages(_NEEDS, "measure"):
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression, Ridge
    if predictor is None:
        return LogisticRegression(max_iter=1000) if classes else Ridge()
    method = "predict_proba" if classes else "predict"
    if not hasattr(predictor, method):
        raise TypeError(
            f"predictor={quote(predictor)}: give an estimator of scikit-learn with {method}, such as "
            f"{'LogisticRegression()' if classes else 'Ridge()'}."
        )
    return clone(predictor)


def _splits(x: np.ndarray, y: np.ndarray, folds: int, seed: int, classes: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the items of every fold: those to fit to, and those held out."""
    with optional_packages(_NEEDS, "measure"):
        from sklearn.model_selection import KFold, StratifiedKFold
    if not classes:
        return list(KFold(folds, shuffle=True, random_state=seed).split(x))
    with warnings.catch_warnings():  # of a class with fewer items than folds, which is no problem here
        warnings.simplefilter("ignore", UserWarning)
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))


def _fitted_losses(
    predictor: Any, x: np.ndarray, y: np.ndarray, classes: bool
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the function that gives every item's loss under the predictor, fitted to some items."""
    with optional_packages(_NEEDS, "measure"):
        from sklearn.base import clone
    fitted = clone(predictor).fit(x, y)
    if not classes:
        return lambda points, targets: (fitted.predict(points).reshape(len(points)) - targets) ** 2

    def cross_entropy(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
        column = np.searchsorted(fitted.classes_, targets)
        chosen = fitted.predict_proba(points)[np.arange(len(points)), column].astype(np.float64)
        return -np.log(np.clip(chosen, np.finfo(np.float64).eps, 1.0))

    return cross_entropy
