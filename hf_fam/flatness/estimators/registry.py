"""The estimators by name."""

from __future__ import annotations

from typing import TypeVar

from ...inputs.text import quote
from ...layer.feature_layer import FeatureLayer
from ...layer.finding import AUTO
from ..vocabulary import is_large
from .base import Choice, Estimator

FULL, WEIGHTS_ONLY = "full", "weights_only"
GRADIENTS = (FULL, WEIGHTS_ONLY)

# Chosen for the size of kappa of SmolLM2-135M, which is in the thousands.
LARGE_HEAD_STRENGTH = 1e-6

_ESTIMATORS: dict[str, type[Estimator]] = {}
_E = TypeVar("_E", bound=type[Estimator])


def register(kind: _E) -> _E:
    """Register an estimator under its name, and return it.

    For ``estimator="auto"``, the estimators that were registered last are tried first.

    Args:
        kind: a subclass of `Estimator`; use this function as its decorator.

    Raises:
        ValueError: the name is in use, or the class lacks a trait.

    Examples:
        >>> from hf_fam.flatness.estimators import Estimator, estimator_names, register, unregister
        >>> @register
        ... class WeightNorm(Estimator):
        ...     name, default_strength = "weight_norm", 0.25
        ...
        ...     def __call__(self, batch):
        ...         return batch.weight.square().sum()
        >>> "weight_norm" in estimator_names()
        True
        >>> unregister("weight_norm")
    """
    missing = [trait for trait in ("name", "default_strength") if not hasattr(kind, trait)]
    if missing:
        raise ValueError(f"estimator {kind.__name__} lacks {' and '.join(missing)}: set it as a class attribute.")
    if kind.name == AUTO or kind.name in _ESTIMATORS:
        raise ValueError(f"an estimator called {kind.name!r} exists already: choose another name.")
    _ESTIMATORS[kind.name] = kind
    return kind


def unregister(name: str) -> None:
    """Remove an estimator from the registry."""
    del _ESTIMATORS[name]


def estimators() -> tuple[type[Estimator], ...]:
    """Return all estimators, in the order in which they were registered."""
    return tuple(_ESTIMATORS.values())


def estimator_names() -> tuple[str, ...]:
    """Return the values of an argument called ``estimator``."""
    return (AUTO, *_ESTIMATORS)


def estimator_called(name: str) -> type[Estimator]:
    """Return the estimator of a name other than ``"auto"``."""
    return _ESTIMATORS[name]


def default_estimator(layer: FeatureLayer, head: FeatureLayer | None) -> type[Estimator]:
    """Return the estimator that ``"auto"`` stands for at a layer.

    Args:
        layer: the feature layer.
        head: the layer that computes the logits; None if it is unknown.
    """
    return next(kind for kind in reversed(estimators()) if kind.is_default_for(layer, head))


def make_estimator(name: str, choice: Choice) -> Estimator:
    """Return a new estimator.

    Args:
        name: name of the estimator, or ``"auto"``.
        choice: model, layer and options.

    Raises:
        ValueError: the estimator does not support the layer.
    """
    kind = default_estimator(choice.layer, choice.head) if name == AUTO else estimator_called(name)
    return kind.make(choice)


def default_lambda(estimator: str, out_features: int, *, at_head: bool = False) -> float:
    """Return the default strength lambda, see docs/choosing.md.

    Heads of language models have much larger features. With 0.003, the term would be several times the loss there.

    Args:
        estimator: name of the estimator.
        out_features: d, for a head the number of classes.
        at_head: whether the layer computes the logits.

    Examples:
        >>> default_lambda("closed_form", 77), default_lambda("row_probes", 49_152)
        (0.003, 1e-06)
    """
    kind = estimator_called(estimator)
    is_large_head = (at_head or kind.only_at_head) and is_large(out_features)
    return LARGE_HEAD_STRENGTH if is_large_head else kind.default_strength


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: the value is not among them; the message lists them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={quote(value)}: choose one of {', '.join(map(repr, choices))}.")
