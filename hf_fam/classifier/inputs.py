"""Features, labels and weights as a fit needs them, or a sentence that says what is wrong with them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor

from ..inputs.kinds import require_flag
from ..inputs.numbers import require_number, require_whole
from ..inputs.text import one_line, quote
from .training_set import chunks

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The largest δ whose square is far from overflow.
_LARGEST_DELTA = 1e6


def checked_features(estimator: Any, X: Any, reset: bool) -> Tensor:
    """Return features as a tensor that shares its memory with ``X`` where it can.

    Args:
        estimator: gets ``n_features_in_`` and ``feature_names_in_``, or has them.
        X: an array, a table or a tensor of shape (n, m). A tensor stays on its device.
        reset: whether the estimator gets these attributes.

    Returns:
        Of shape (n, m), float32 or float64.

    Raises:
        ValueError: names what is wrong, and what to do.
    """
    if sparse.issparse(X) or (isinstance(X, Tensor) and X.layout != torch.strided):
        raise ValueError(
            "X is a sparse matrix, which is not supported: make it dense, or reduce it with "
            "sklearn.decomposition.TruncatedSVD."
        )
    shape = getattr(X, "shape", None)
    if shape is not None and len(shape) != 2:
        raise ValueError(
            f"X has the shape {tuple(shape)}, but (samples, features) is needed. Reshape your data: X.reshape(-1, 1) "
            "for one feature, X.reshape(1, -1) for one sample."
        )
    if isinstance(X, Tensor):
        if X.dtype not in _PRECISIONS:
            raise ValueError(f"X is a tensor of {X.dtype}, but features must be floating point: give X.float().")
        if 0 in X.shape:
            raise ValueError(f"X has the shape {tuple(X.shape)}: give at least one sample with one feature.")
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        features = X.detach().float() if X.dtype in (torch.float16, torch.bfloat16) else X.detach()
    else:
        features = _shared(_checked_array(estimator, X, reset))
    _refuse_infinite(features)
    return features


def _checked_array(estimator: Any, X: Any, reset: bool) -> NDArray[Any]:
    """Return what scikit-learn makes of features; its messages are put on one line."""
    if X is None:
        raise ValueError("X is None: give features of shape (samples, features).")
    if isinstance(X, list | tuple) and X and isinstance(X[0], str):
        raise ValueError("X has texts: give their embeddings, of shape (samples, features).")
    if getattr(getattr(X, "dtype", None), "kind", None) == "c":
        raise ValueError("Complex data not supported: give real features, for example X.real.")
    try:
        return validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False)
    except TypeError as error:
        raise TypeError(f"X is not valid: {one_line(str(error))}") from error
    except Exception as error:  # of the library of a table, too
        raise ValueError(f"X is not valid: {one_line(str(error))}") from error


def _shared(array: NDArray[Any]) -> Tensor:
    """Return a tensor with the memory of an array, where torch can share it. Nothing here writes to it."""
    if min(array.strides) < 0:
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _refuse_infinite(features: Tensor) -> None:
    for rows in chunks(features, features.shape[1]):
        finite = features[rows].isfinite()
        if not bool(finite.all()):
            row, column = (int(k) for k in (~finite).nonzero()[0])
            raise ValueError(
                f"X has NaN or infinite values, the first in row {rows.start + row}, column {column}: remove these "
                "samples or fill in the values."
            )


def checked_labels(estimator: Any, y: Any, samples: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes, sorted, and the class of each sample as a number.

    Args:
        estimator: for the message.
        y: labels, numbers or strings, of shape (n,).
        samples: n.

    Raises:
        ValueError: there are no labels, fewer than two classes, labels of several types, or not n labels.
    """
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    if isinstance(y, Tensor):
        y = y.detach().cpu()
        y = (y.double() if y.is_floating_point() else y).numpy()
    labels = column_or_1d(y, warn=True)
    if len(labels) != samples:
        raise ValueError(f"X has {samples} samples and y {len(labels)} labels: give one label for each sample.")
    if labels.dtype.kind in "fc" and not np.isfinite(labels).all():
        raise ValueError("y has NaN or infinite values: remove these samples.")
    if labels.dtype.kind == "O" and any(map(_is_missing, labels)):
        raise ValueError("y has missing labels: remove these samples.")
    try:
        check_classification_targets(labels)
        classes, numbers = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = " and ".join(sorted({type(label).__name__ for label in labels}))
        raise ValueError(f"y mixes labels of the types {kinds}: give labels of one type.") from error
    if len(classes) < 2:
        raise ValueError(f"y has one class, {classes.tolist()[0]!r}: a classifier needs samples of at least two.")
    return classes, numbers


def _is_missing(label: Any) -> bool:
    """Return True for None, NaN and the NA of pandas, which has no truth value."""
    return label is None or type(label).__name__ == "NAType" or (isinstance(label, float) and np.isnan(label))


def checked_weights(sample_weight: Any, features: Tensor, numbers: Tensor, classes: NDArray[Any]) -> Tensor:
    """Return the weights of the samples, with sum one.

    Args:
        sample_weight: of shape (n,); None: all alike.
        features: give the device and the precision.
        numbers: the class of each sample as a number.
        classes: the classes, for the message.

    Raises:
        ValueError: a weight is negative or not finite, or all weights of a class are zero.
    """
    size = len(features)
    if sample_weight is None:
        return features.new_full((size,), 1 / size)
    weights = _as_numbers(sample_weight)
    if weights.ndim == 0:
        weights = np.full(size, float(weights))
    if weights.shape != (size,):
        raise ValueError(f"sample_weight has the shape {weights.shape}: give one weight for each of {size} samples.")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("sample_weight has negative, infinite or NaN entries: give weights of at least 0.")
    if not weights.any():
        raise ValueError("sample_weight is zero for all samples: give at least two classes weights above 0.")
    weights = weights / weights.max()  # so that the sum does not overflow
    shares = torch.from_numpy(weights / weights.sum()).to(features)
    of_class = np.bincount(numbers.cpu().numpy(), shares.cpu().numpy(), minlength=len(classes))
    if not of_class.all():
        missing = classes.tolist()[int(np.flatnonzero(of_class == 0)[0])]
        raise ValueError(
            f"all samples of class {missing!r} have zero weight: remove these samples, or give one a weight above 0."
        )
    return shares


def _as_numbers(sample_weight: Any) -> NDArray[np.float64]:
    if isinstance(sample_weight, Tensor):
        sample_weight = sample_weight.detach().cpu()
        sample_weight = (sample_weight.float() if sample_weight.is_floating_point() else sample_weight).numpy()
    try:
        weights = np.asarray(sample_weight)
        if weights.dtype.kind != "c":
            return weights.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"sample_weight={quote(sample_weight)} is not an array of real numbers: give one for each sample.")


def refuse_constant(features: Tensor) -> None:
    """Refuse features that are the same for all samples.

    Raises:
        ValueError: they are.
    """
    if all(bool((features[rows] == features[0]).all()) for rows in chunks(features, features.shape[1])):
        raise ValueError("all samples have the same features, so there is nothing to learn from: check X.")


def refuse_out_of_range(dimension: float, scale: float, features: Tensor) -> None:
    """Refuse features whose squares overflow or underflow.

    Args:
        dimension: the effective dimension, which is not a number then.
        scale: the root mean square of a feature.
        features: give the precision.

    Raises:
        ValueError: they do.
    """
    precision = torch.finfo(features.dtype)
    if not (np.isfinite(dimension) and scale**2 > precision.tiny / precision.eps):
        raise ValueError(
            f"the squares of the features, or of their differences from the mean, are out of the range of "
            f"{str(features.dtype).removeprefix('torch.')}: rescale X."
        )


def checked_settings(settings: dict[str, Any]) -> None:
    """Refuse settings that are out of range.

    Args:
        settings: all arguments of the estimator, by name.

    Raises:
        ValueError: names the setting, its value, and what it may be.
        TypeError: the same, of a setting that is no truth value.
    """
    if not isinstance(settings["delta"], str) or settings["delta"] != "auto":
        _require_number("delta", settings["delta"], 0, _LARGEST_DELTA, more=', or "auto"')
    _require_number("smoothing", settings["smoothing"], 0, 1)
    _require_number("tol", settings["tol"], 0, open_low=True)
    for name, least in (("max_iter", 1), ("verbose", 0)):
        if not isinstance(settings[name], int | np.integer):
            raise ValueError(f"{name}={quote(settings[name])}: give a whole number of at least {least}.")
        require_whole(name, settings[name], least)
    for name in ("center", "warm_start"):
        require_flag(name, settings[name])


def _require_number(name: str, value: Any, *bounds: float, open_low: bool = False, more: str = "") -> None:
    """Refuse what is no number; a text is none, as in the estimators of scikit-learn."""
    given = value if isinstance(value, int | float | np.integer | np.floating) else float("nan")
    try:
        require_number(name, given, *bounds, open_low=open_low, more=more)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{name}={quote(given)}", f"{name}={quote(value)}")) from None
