"""Find the form of a loss as a function of the logits, and notice when it changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..calculus.autograd_graph import graph_signature
from ..calculus.recheck_schedule import RecheckSchedule
from .batch import Batch
from .head_loss import HeadLoss, NoClosedForm, recognize_logits

# The largest number of graphs whose forms are kept. A loss whose graph depends on the batch would add one each time.
_MAX_GRAPHS = 64

# After more changes than this without a new graph, the loss has no form that holds until the next check is read.
_MAX_CHANGES = 2


class FormFinder:
    """Finder of the form of a loss.

    It looks at the first batches, at every hundredth, and at each loss whose graph is new. So losses of several tasks
    may alternate. In between, every step compares its derivatives with the form (`form_checks`). A CPU reads the result
    at once. Elsewhere the term of such a step is 0, without a wait, and `read` makes the finder look again.

    Args:
        smoothing: eps.
        layer: name of the layer, for warnings.
    """

    def __init__(self, smoothing: float, layer: str) -> None:
        self._smoothing, self._layer = smoothing, layer
        self._schedule = RecheckSchedule()
        self._forms: dict[tuple[str, ...], HeadLoss] = {}
        self._is_off: Tensor | None = None
        self._must_look = False
        self._changes = 0
        self.batches = 0

    def __call__(self, batch: Batch, calls: Sequence[Tensor]) -> HeadLoss:
        """Return the form of the loss of a batch.

        A loss without curvature so far counts as elementwise: kappa is 0 in each form, and the next batch is looked at
        again.

        Args:
            batch: the batch after its forward pass.
            calls: z of every call of the head.

        Raises:
            NoClosedForm: the loss has no closed form.
        """
        if self._changes > _MAX_CHANGES:
            raise NoClosedForm("its form changes again and again")
        self.batches += 1
        signature = graph_signature(batch.loss, calls)
        if self._schedule.is_due():
            self.read()
            self._must_look = True
        if self._must_look or signature not in self._forms:
            self.look(batch, calls)
        return self._forms.get(signature) or HeadLoss("elementwise")

    def look(self, batch: Batch, calls: Sequence[Tensor]) -> HeadLoss | None:
        """Recognize the form of the loss of a batch again, see `recognize_logits`."""
        form, signature = recognize_logits(batch, calls, self._smoothing), graph_signature(batch.loss, calls)
        if form is not None:
            self._must_look = False
            if len(self._forms) == _MAX_GRAPHS:
                self._forms.clear()
            self._forms[signature] = form
        return form

    def is_off(self, checks: Sequence[Tensor]) -> bool:
        """Return True if the checks of a batch show another form; False on a device that has to be waited for.

        Args:
            checks: what `item_weights` returned for every call, scalars of bool.
        """
        is_off = torch.stack([*checks]).any() if len(checks) > 1 else checks[0]
        if is_off.device.type == "cpu":
            return bool(is_off)
        self._is_off = is_off if self._is_off is None else self._is_off | is_off
        return False

    def read(self) -> None:
        """Read the checks since the last call, and look at the next batch if the form was another one.

        This waits for the device.
        """
        is_off, self._is_off = self._is_off, None
        if is_off is None or not bool(is_off):
            return
        self._must_look = True
        self._changes += 1
        warnings.warn(
            f"The loss at '{self._layer}' changed its form. The flatness term was 0 in the steps that showed it. The "
            "next step looks at the form again.",
            stacklevel=6,
        )
