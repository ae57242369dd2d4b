"""Capture one forward pass of a feature layer and the head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .exact_norms import ExactNorms
from .feature_layer import Capture, FeatureLayer
from .finding import unwrap
from .fused_head import UnfusedHead


class ForwardWatch:
    """The hooks that capture a forward pass.

    Args:
        model: the model that contains the layer.
        layer: the feature layer.
        head: the layer that computes the logits, to capture it, too.
        exact_norms: compute normalizations above the layer from elementary operations, for third derivatives.
        unfuse_head: make a head that is fused with its loss compute its logits.

    Attributes:
        captures: captures of the layer in the last forward pass; None before it and after `take`.
        head_captures: captures of the head; None likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: FeatureLayer,
        head: FeatureLayer | None = None,
        *,
        exact_norms: bool = False,
        unfuse_head: bool = True,
    ) -> None:
        self._layer, self._head = layer, None if head is layer else head
        self._norms = ExactNorms(unwrap(model), layer) if exact_norms else None
        self._unfused = UnfusedHead(unwrap(model)) if unfuse_head else None
        self.captures: Sequence[Capture] | None = None
        self.head_captures: Sequence[Capture] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not, which has captured nothing."""
        return {**vars(self), "captures": None, "head_captures": None}

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Capture the forward pass inside the ``with`` block."""
        if self._norms is not None:
            self._norms.attach()
        with contextlib.ExitStack() as stack:
            self.captures = self.head_captures = stack.enter_context(self._layer.capture())
            if self._head is not None:
                self.head_captures = stack.enter_context(self._head.capture())
            if self._unfused is not None:
                self._unfused.attach()
                stack.callback(self._unfused.detach)
            yield

    def take(self) -> tuple[Sequence[Capture] | None, Sequence[Capture]]:
        """Return the captures of the layer and of the head, and release them."""
        captures, head_captures = self.captures, self.head_captures
        self.captures = self.head_captures = None
        return captures, head_captures or []

    def detach(self) -> None:
        """Remove the hooks from the model.

        The next `capture` registers them again.
        """
        for layer in (self._layer, self._head):
            if layer is not None:
                layer.detach()
                layer.perturb = None
        if self._norms is not None:
            self._norms.detach()
        self.captures = self.head_captures = None
