"""Whether the loss of a batch gives kappa the right derivatives: looked at in the first batches, then now and then."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from ..calculus.derivatives import gradients, refuse_once_differentiable
from ..calculus.recheck_schedule import RecheckSchedule
from ..calculus.third_derivatives import refuse_wrong_third_derivatives
from ..layer.compilation import is_inside_compiled
from ..layer.feature_layer import Capture, FeatureLayer
from .batch import Batch
from .checks import check_reaches_loss, may_be_skipped, refuse_compiled_loss
from .estimators import Estimator, HessianProbes
from .loss_rounding import warn_of_rounding

# A layer that layerdrop may leave out is refused if the first batches do not call it at all.
_FIRST_CALL_WITHIN = 20


class LossChecks:
    """The checks of the losses of one training.

    Args:
        model: the model.
        layer: its feature layer.
        at_head: whether that layer computes the logits.
    """

    def __init__(self, model: nn.Module, layer: FeatureLayer, *, at_head: bool) -> None:
        self._model, self._layer, self._at_head = model, layer, at_head
        self._recheck_schedule = RecheckSchedule()
        self._has_reached_loss = self._has_been_called = False
        self._skipped_at_first = 0
        self._has_warned_of_zero = self._has_warned_of_rounding = False

    def is_due(self) -> bool:
        """Return True if the next batch is to be checked."""
        return self._recheck_schedule.is_due()

    def is_skipped(self, loss: object, captures: Sequence[Capture] | None) -> bool:
        """Return True if the captured forward pass rightly left out the layer."""
        if captures or captures is None:
            self._has_been_called |= bool(captures)
            return False
        if self._layer.called_without_gradients or not isinstance(loss, Tensor) or loss.dim() != 0:
            return False
        if self._has_been_called:
            return True
        self._skipped_at_first += 1
        return self._skipped_at_first <= _FIRST_CALL_WITHIN and may_be_skipped(self._model, self._layer)

    def check(self, batch: Batch, method: Estimator) -> None:
        """Refuse a loss whose graph gives missing or wrong derivatives.

        Raises:
            ValueError: the loss does not depend on the layer, is compiled or is not supported by the estimator; an
                operation above the layer has a wrong third derivative.
            SecondDerivativeError: an operation above the layer has no second derivative.
        """
        if self._has_reached_loss and not batch.graph.is_reached:
            return  # a batch of another task, whose loss does not use this layer
        check_reaches_loss(batch, self._layer, is_inside_compiled(self._model, self._layer.module))
        self._has_reached_loss = True
        refuse_compiled_loss(batch)
        method.check_batch(batch)
        if method.tail_derivatives > 1:
            refuse_once_differentiable(gradients(batch.loss, batch.pre_activations))
        if method.tail_derivatives > 2:
            refuse_wrong_third_derivatives(batch.graph)
        if method.tail_derivatives > 1 and not self._has_warned_of_rounding:
            has_values = isinstance(method, HessianProbes) and not self._at_head
            self._has_warned_of_rounding = warn_of_rounding(batch.loss, self._layer.name, has_values=has_values)

    def warn_of_zero(self, kappa: Tensor, batch: Batch) -> None:
        """Warn once if kappa is exactly 0 although the batch has a loss.

        A batch without labels has a loss of 0 or NaN. Its kappa of 0 is no reason to warn.
        """
        value = batch.loss.detach()
        is_zero = kappa.requires_grad and kappa.detach() == 0 and value.isfinite() and value != 0
        if is_zero and batch.graph.is_reached and not self._has_warned_of_zero:
            self._has_warned_of_zero = True
            warnings.warn(
                f"The relative flatness of '{self._layer.name}' is exactly 0 here: the loss has no curvature (absolute "
                "error, hinge), or the layer's weight is 0. The flatness term has no effect until this changes.",
                stacklevel=3,
            )
