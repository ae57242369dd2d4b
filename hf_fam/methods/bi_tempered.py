"""The bi-tempered logistic loss, by pytorch_optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..inputs.packages import optional_packages
from .base import register
from .item_loss import ItemLoss

# Fixed-point iterations for the normalization of the tempered softmax.
ITERATIONS = 10


@register
class BiTempered(ItemLoss):
    """The bi-tempered logistic loss with temperatures ``1 - strength`` and ``1 + strength``."""

    name = "bi_tempered"
    field = "bi_tempered_strength"
    description = "bounded loss with a heavy-tailed softmax, t1 = 1 - s and t2 = 1 + s (Amid et al. 2019)"
    default = 0.2
    step = 2.0
    limits = (0.0, 1.0)

    def apply(self, trainer: Any) -> None:
        """Replace the loss."""
        with optional_packages("method='bi_tempered'", "compare"):
            import pytorch_optimizer  # noqa: F401
        super().apply(trainer)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row."""
        from pytorch_optimizer.loss.bi_tempered import bi_tempered_logistic_loss

        return bi_tempered_logistic_loss(
            logits, labels, 1 - self.value, 1 + self.value, num_iters=ITERATIONS, reduction="none"
        )
