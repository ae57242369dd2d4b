"""What the arguments of RelativeFlatness mean for a model: its layer, its estimator, and defaults that depend on it."""

from __future__ import annotations

import contextlib
import dataclasses

from torch import nn

from ..inputs.numbers import MOST_PROBES, require_whole
from ..inputs.text import quote
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import AUTO, HEAD, find_head, resolve_layer, unwrap
from ..layer.kinds import has_bias
from ..layer.sharding import is_sharded, refuse_older_fsdp
from .estimators import (
    GRADIENTS,
    WEIGHTS_ONLY,
    Choice,
    Estimator,
    FeaturePerturbation,
    check_choice,
    estimator_names,
    make_estimator,
)
from .smoothing import DEFAULT_SMOOTHING, check_smoothing
from .vocabulary import is_large


class ResolvedArguments:
    """The layer and the estimator for the arguments of `RelativeFlatness`, which are described there.

    Attributes:
        layer: the feature layer.
        at_head: whether it computes the logits, as far as the model shows.
        method: the estimator before any batch.
        centers: whether the features are centered.
        is_sharded: whether the estimator is one for a model that FSDP or DeepSpeed shards.

    Raises:
        ValueError: as `RelativeFlatness` does.
        TypeError: likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        estimator: str,
        probes: int | None,
        gradient: str,
        center: bool | None,
        smoothing: float | None,
    ) -> None:
        if smoothing is not None:
            check_smoothing("smoothing", smoothing)
        check_choice("estimator", estimator, estimator_names())
        check_choice("gradient", gradient, GRADIENTS)
        if probes is not None:
            probes = require_whole("probes", probes, 1, MOST_PROBES, more=", or None for the default")
        if center is not None and not isinstance(center, bool):
            raise TypeError(f"center={quote(center)}: give True, False or None.")
        self._model, self._layer_argument, self._estimator_argument = model, layer, estimator
        self._center_argument, self._smoothing_argument = center, smoothing
        self.layer = FeatureLayer(model, layer)
        self._head_module = find_head(unwrap(model))[1]
        head = _head(model, self.layer, self._head_module)
        self.at_head, self.is_sharded = head is self.layer, False
        self.layer.copies |= not self.at_head  # a copy of a hidden layer is cheap, a copy of many logits is not
        choice = Choice(
            model,
            self.layer,
            head,
            probes,
            weights_only=gradient == WEIGHTS_ONLY,
            smoothing=smoothing or 0.0,
            is_head_by_default=layer in (AUTO, HEAD),
        )
        self.method = make_estimator(estimator, choice)
        if smoothing is None and self._smooths_by_default:
            smoothed = dataclasses.replace(choice, smoothing=DEFAULT_SMOOTHING, must_smooth=False)
            self.method = make_estimator(estimator, smoothed)
        if is_sharded(unwrap(model)):
            self.adapt_to_sharding(self.method)
        self.centers = self.centers_by_default if center is None else center
        if self.centers:
            self.method.refuse_to_center()

    @property
    def centers_by_default(self) -> bool:
        """Return what ``center=None`` means for the model as it is now."""
        return self._head_is_trained_alone and has_bias(self.layer.module) and self.method.can_center_layer()

    @property
    def _smooths_by_default(self) -> bool:
        """Return True if ``smoothing=None`` smooths the model as it is now.

        That is, if only a head is trained, of a size for which it was measured (recipes/smoothing/default.py).
        """
        return self._head_is_trained_alone and self.method.can_smooth and not is_large(self.layer.out_features)

    @property
    def _head_is_trained_alone(self) -> bool:
        return self.at_head and self.layer.is_trained_alone(self._model)

    @property
    def is_outdated(self) -> bool:
        """Return True if the same arguments would mean something else for the model as it is now."""
        model = unwrap(self._model)
        if (
            resolve_layer(model, self._layer_argument)[1] is not self.layer.module
            or find_head(model)[1] is not self._head_module
        ):
            return True
        if self._center_argument is None and self.centers_by_default != self.centers:
            return True
        smooths = self.method.choice.smoothing > 0
        return self._smoothing_argument is None and self._smooths_by_default != smooths

    def adapt_to_sharding(self, method: Estimator) -> None:
        """Choose an estimator that works in a model that FSDP or DeepSpeed shards.

        Args:
            method: the estimator in use, which may have replaced the first one.

        Raises:
            ValueError: the estimator does not work there, or the model is in the older FullyShardedDataParallel.
        """
        refuse_older_fsdp(unwrap(self._model))
        is_automatic = self._estimator_argument == AUTO and not self.at_head
        self.method = (FeaturePerturbation(method.choice) if is_automatic else method).for_sharded_model()
        self.is_sharded = True


def _head(model: nn.Module, layer: FeatureLayer, module: nn.Module) -> FeatureLayer | None:
    """Return the layer that computes the logits, or None if its kind is unknown.

    If the feature layer is the head, it is returned itself.
    """
    if module is layer.module:
        return layer
    with contextlib.suppress(TypeError):
        return FeatureLayer(model, module)
    return None
