"""What a measurement says, in plain words: the sentences and the large numbers of the report's first box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .items_needed import items_needed_notes
from .results import FlatnessTable, LayerFlatness

if TYPE_CHECKING:
    from .class_predictions import Predictions

# The size of perturbation in the sentences.
_DELTA = 0.1
_STANDARD_ERRORS = 1.96
# A centered head has another kappa. Nothing in a saved model says that its head was fitted by FlatLogisticRegression.
_UNCENTERED = (
    "These κ take the features as they are. A head that was trained with centered features, such as that of "
    "FlatLogisticRegression, can be flat around their mean and have a large κ here."
)
# Losses that differ by this fraction are called different.
_SAME_LOSS = 0.1


@dataclass(frozen=True)
class MeasuredModel:
    """A model, as it was measured.

    Attributes:
        name: name of the model, as the user gave it.
        table: its layers.
        predictions: of a classifier, else None.
    """

    name: str
    table: FlatnessTable
    predictions: Predictions | None = None

    @property
    def loss(self) -> float:
        """Return the mean loss."""
        return self.table[0].loss


def sharpest_layer(table: FlatnessTable) -> LayerFlatness:
    """Return the layer whose perturbation raises the loss most.

    For relative perturbations of one size the expected rise is proportional to kappa / m. So layers of different widths
    are compared by it and not by kappa.
    """
    return max(table, key=lambda r: r.kappa_per_feature)


def expected_rise(record: LayerFlatness, delta: float = _DELTA) -> float:
    """Return the expected rise of the loss if the layer's inputs are perturbed by a fraction delta, to second order."""
    return delta**2 / 2 * record.kappa_per_feature


def tiles(model: MeasuredModel) -> list[tuple[str, str]]:
    """Return values and names of the numbers that the box shows largest."""
    sharpest = sharpest_layer(model.table)
    result = []
    if model.predictions is not None:
        result.append((f"{100 * model.predictions.accuracy:.1f} %", "accuracy"))
    result.append((f"{model.loss:.3g}", "mean loss"))
    if model.predictions is not None:
        result.append((f"{100 * model.predictions.calibration_error:.1f} %", "calibration error"))
    if len(model.table) > 1:
        result.append((f"{sharpest.kappa_per_feature:.3g}", f"largest κ/m, of {sharpest.layer}"))
    else:
        result.append((f"{sharpest.kappa:.3g}", f"κ of {sharpest.layer}"))
    return [*result, (f"{sharpest.num_items:,}", "items")]


def findings(model: MeasuredModel, second: MeasuredModel | None = None) -> list[str]:
    """Return what the measurement says, a sentence or two for each subject."""
    comparison = _comparison(model, second) if second is not None else []
    return [quality(model), _sharpness(model.table), *items_needed_notes(model.table, "κ"), *comparison]


def quality(model: MeasuredModel) -> str:
    """Return the accuracy, the mean loss and the worst class in a sentence."""
    items = f"{model.table[0].num_items:,} items"
    if model.predictions is None:
        return f"The mean loss on {items} is {model.loss:.3g}."
    worst = model.predictions.class_accuracies()[0]
    right = f"{100 * model.predictions.accuracy:.1f} %"
    text = f"The model is right on {right} of {items}, with a mean loss of {model.loss:.3g}."
    if worst[1] < model.predictions.accuracy:
        text += f" It is worst at the class {worst[0]} ({100 * worst[1]:.0f} % right)."
    return text


def _sharpness(table: FlatnessTable) -> str:
    sharpest = sharpest_layer(table)
    subject = f"The sharpest of {len(table)} layers, by κ/m, is" if len(table) > 1 else "The measured layer is"
    rise = expected_rise(sharpest)
    if rise < 0:
        return (
            f"{subject} {sharpest.layer}, with κ = {sharpest.kappa:.3g}. A negative κ means that random changes of the "
            "layer's inputs lower the loss: the model is not at a minimum of this loss."
        )
    before, after = _apart(sharpest.loss, sharpest.loss + rise)
    return (
        f"{subject} {sharpest.layer}: if its inputs change by {100 * _DELTA:.0f} % at random, the loss rises from "
        f"{before} to about {after}."
    )


def _apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers with enough digits to differ, at most eight.

    Examples:
        >>> _apart(0.12510, 0.12514), _apart(0.5, 0.8)
        (('0.1251', '0.12514'), ('0.5', '0.8'))
    """
    texts = [(f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(3, 9)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[-1])


def _comparison(model: MeasuredModel, second: MeasuredModel) -> list[str]:
    sentences = []
    if model.predictions is not None and second.predictions is not None:
        sentences.append(_compare_accuracies(model.predictions, second))
    pairs = shared_layers(model.table, second.table)
    if not pairs:
        sentences.append(f"{second.name} has no layer in common with this model, so their κ are not compared.")
        return sentences
    sentences += [_compare_layers(one, other, second.name) for one, other in pairs[:2]]
    sentences.append(_UNCENTERED)
    if not model.table.settings.get("normalize_features", True):
        sentences.append("Were the two models trained in different ways? Then compare with --normalize_features, too.")
    if abs(model.loss - second.loss) > _SAME_LOSS * max(abs(model.loss), abs(second.loss)):
        sentences.append(
            f"The mean losses differ ({model.loss:.3g} against {second.loss:.3g}). κ falls with the loss of a "
            "confident model, so compare the flatness of models at equal loss."
        )
    return sentences


def _compare_accuracies(ours: Predictions, second: MeasuredModel) -> str:
    theirs = second.predictions
    assert theirs is not None
    start = f"Accuracy is {100 * ours.accuracy:.1f} % against {100 * theirs.accuracy:.1f} % of {second.name}"
    gain = ours.accuracy_gain(theirs)
    if gain is None:
        return f"{start}; their classes are numbered differently, so there is no interval."
    mean, low, high = (100 * value for value in gain)
    clear = "" if low > 0 or high < 0 else ": these items do not show which is better"
    return f"{start} ({mean:+.1f}, 95 % interval {low:.1f} to {high:.1f}){clear}."


def _compare_layers(one: LayerFlatness, other: LayerFlatness, name: str) -> str:
    start = f"At {one.layer}, κ is {one.kappa:.3g} against {other.kappa:.3g} of {name}"
    error = math.hypot(one.standard_error, other.standard_error)
    if not math.isfinite(error):
        return f"{start}; one item gives no interval."
    if abs(one.kappa - other.kappa) <= _STANDARD_ERRORS * error:
        return f"{start}: no difference beyond the standard errors."
    return f"{start}: this model is {'flatter' if one.kappa < other.kappa else 'sharper'} there."


def shared_layers(table: FlatnessTable, second: FlatnessTable) -> list[tuple[LayerFlatness, LayerFlatness]]:
    """Return the layers of one name and one shape in both tables, those of largest kappa / m first."""
    theirs = {(r.layer, r.out_features, r.in_features): r for r in second}
    pairs = [
        (r, theirs[r.layer, r.out_features, r.in_features])
        for r in table
        if (r.layer, r.out_features, r.in_features) in theirs
    ]
    return sorted(pairs, key=lambda pair: -pair[0].kappa_per_feature)
