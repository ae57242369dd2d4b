"""The running mean of the features, and the smoothing, in the Trainer's state, and so in every checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

from ..flatness.feature_mean import STATE_KEY, FeatureMean
from ..flatness.relative_flatness import RelativeFlatness
from ..layer.feature_layer import FeatureLayer


def save_flatness(state: Any, flatness: RelativeFlatness) -> None:
    """Store the running mean and the smoothing in the Trainer's state, if there are any.

    Args:
        state: the ``TrainerState``.
        flatness: the flatness of the training.
    """
    mean, layer, smoothing = flatness.mean, flatness.layer, flatness.method.smoothing
    entry: dict[str, Any] = {"smoothing": smoothing} if smoothing else {}
    if mean is not None:
        entry["mean"] = {**mean.state(), "layer": layer.name}
    if entry:
        state.stateful_callbacks[STATE_KEY] = {**entry, "layer": layer.name}


def load_mean(state: Any, mean: FeatureMean, layer: FeatureLayer) -> None:
    """Load the mean from the Trainer's state; it starts anew in a new training.

    Args:
        state: the ``TrainerState``.
        mean: running mean of the features.
        layer: the layer that reads the features.

    Raises:
        ValueError: the saved mean is damaged; the message says where.
    """
    mean.load(None, layer.weight)
    if state.global_step == 0:
        return
    saved = state.stateful_callbacks.get(STATE_KEY)
    saved = saved.get("mean") if isinstance(saved, dict) else saved
    if saved is None:
        _warn("no running mean of the features (trainer_state.json, stateful_callbacks, FAM)")
    elif isinstance(saved, dict) and saved.get("layer", layer.name) != layer.name:
        _warn(f"the running mean of another layer, '{saved['layer']}' instead of '{layer.name}'")
    else:
        try:
            mean.load(saved, layer.weight)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint's running mean of the features of '{layer.name}' is damaged: {error}. Resume from "
                "another checkpoint, or remove the entry FAM of stateful_callbacks in trainer_state.json to start the "
                "mean anew."
            ) from None


def _warn(content: str) -> None:
    warnings.warn(
        f"The checkpoint has {content}: the mean starts anew, so the next step has no flatness term.", stacklevel=4
    )
