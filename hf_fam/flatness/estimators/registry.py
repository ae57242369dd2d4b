"""The estimators by name."""

from __future__ import annotations

from typing import TypeVar

from ...layer.feature_layer import FeatureLayer
from ...layer.finding import AUTO
from ..vocabulary import is_large
from .base import Choice, Estimator

FULL, WEIGHTS_ONLY = "full", "weights_only"
GRADIENTS = (FULL, WEIGHTS_ONLY)

# Not the outcome of a study: chosen by the size of kappa of SmolLM2-135M, which is in the thousands.
LARGE_HEAD_STRENGTH = 1e-6

_ESTIMATORS: dict[str, type[Estimator]] = {}
_E = TypeVar("_E", bound=type[Estimator])


def register(kind: _E) -> _E:
    """Make an estimator known by its name; a class decorator.

    An estimator that is registered later is asked first whether ``"auto"`` takes it at a layer.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name == AUTO or kind.name in _ESTIMATORS:
        raise ValueError(f"an estimator called {kind.name!r} exists already: choose another name.")
    _ESTIMATORS[kind.name] = kind
    return kind


def unregister(name: str) -> None:
    """Forget an estimator."""
    del _ESTIMATORS[name]


def estimators() -> tuple[type[Estimator], ...]:
    """Return all estimators, in the order in which they were registered."""
    return tuple(_ESTIMATORS.values())


def estimator_names() -> tuple[str, ...]:
    """Return what an argument called ``estimator`` takes."""
    return (AUTO, *_ESTIMATORS)


def estimator_called(name: str) -> type[Estimator]:
    """Return the estimator of a name other than ``"auto"``."""
    return _ESTIMATORS[name]


def default_estimator(layer: FeatureLayer, head: FeatureLayer | None) -> type[Estimator]:
    """Return the estimator that ``"auto"`` stands for at a layer.

    Args:
        layer: the feature layer.
        head: the layer into the logits; None if none is known.
    """
    return next(kind for kind in reversed(estimators()) if kind.is_default_for(layer, head))


def make_estimator(name: str, choice: Choice) -> Estimator:
    """Return a new estimator.

    Args:
        name: of the estimator, or ``"auto"``.
        choice: what it is made for.

    Raises:
        ValueError: it cannot serve the layer.
    """
    kind = default_estimator(choice.layer, choice.head) if name == AUTO else estimator_called(name)
    return kind.make(choice)


def default_lambda(estimator: str, out_features: int, *, at_head: bool = False) -> float:
    """Return the strength that is taken where none is given, see docs/choosing.md.

    Language models' heads have far larger features, so that 0.003 would be a term of several times the loss there.

    Args:
        estimator: its name.
        out_features: d, which for a head is the number of classes.
        at_head: whether the layer is the one into the logits, whatever the estimator.

    Examples:
        >>> default_lambda("closed_form", 77), default_lambda("row_probes", 49_152)
        (0.003, 1e-06)
    """
    kind = estimator_called(estimator)
    is_large_head = (at_head or kind.only_at_head) and is_large(out_features)
    return LARGE_HEAD_STRENGTH if is_large_head else kind.default_strength


def check_choice(name: str, given: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: it is not.
    """
    if given not in choices:
        raise ValueError(f"{name}={given!r}: choose one of {', '.join(map(repr, choices))}.")
