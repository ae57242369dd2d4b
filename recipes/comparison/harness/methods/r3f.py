"""R3F (Aghajanyan et al. 2021, arXiv 2008.03156): predictions that do not change when word embeddings do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from .base import Method, register


@register("r3f")
class R3F(Method):
    """``loss + strength * symmetric KL(p(x), p(x + noise))``, noise uniform in +-``size``; two forward passes."""

    regimes = ("finetune",)

    def __init__(self, strength: float, size: float = 1e-5) -> None:
        self._strength, self._size = strength, size

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        return R3FTrainer(self._strength, self._size, args=TrainingArguments(**arguments), **kwargs)


class R3FTrainer(Trainer):
    def __init__(self, strength: float, size: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._strength, self._size = strength, size
        self._generator = torch.Generator().manual_seed(self.args.seed)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        if model.training and torch.is_grad_enabled():
            embedded = self.accelerator.unwrap_model(model).get_input_embeddings()(inputs["input_ids"])
            noise = (2 * torch.rand(embedded.shape, generator=self._generator) - 1) * self._size
            others = {k: v for k, v in inputs.items() if k not in ("input_ids", "labels")}
            moved = model(inputs_embeds=embedded + noise, **others).logits
            loss = loss + self._strength * symmetric_kl(outputs["logits"].float(), moved.float())
        return (loss, outputs) if return_outputs else loss


def symmetric_kl(left: Tensor, right: Tensor) -> Tensor:
    """``KL(p || q) + KL(q || p)``, mean over rows of logits."""
    p, q = left.log_softmax(-1), right.log_softmax(-1)
    return sum(F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p)))
