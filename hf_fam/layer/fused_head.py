"""Replace language-model heads that are fused with the loss by ordinary ones during training.

TRL's trainers call ``model(..., labels=labels, fused_lm_head=True)``. Log-probabilities are then computed in tiles, the
head is never called, and there are no logits to differentiate. With the hooks of this module, such a call runs the
model's own forward pass and computes the same quantities from its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SWITCH = "fused_lm_head"


@dataclass
class TokenLogProbabilities:
    """Output of a fused head; shapes ``(batch, tokens)``, 0 where the label is ignored.

    Attributes:
        loss: mean negative log-likelihood, or its sum over ``num_items_in_batch``.
        log_probs: of the labels.
        entropy: of the prediction, without gradient.
        log_sum_sq_probs: ``log sum_k p_k^2``, without gradient.
        mean_logits: over the vocabulary, without gradient.
        is_top1: whether the label is the most probable token.
        label_mask: which labels count.
        aux_loss: load balancing of mixture-of-experts models.
    """

    loss: Tensor
    log_probs: Tensor
    entropy: Tensor
    log_sum_sq_probs: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    label_mask: Tensor
    aux_loss: Tensor | None


class UnfusedHead:
    """Runs a model with a fused head through its logits in differentiated passes.

    Args:
        model: the model as it is called. The hooks change nothing for models without a fused head.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._labels: dict[str, Any] | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks, once."""
        if not self._hooks:
            self._hooks = [
                self._model.register_forward_pre_hook(self._before, with_kwargs=True),
                self._model.register_forward_hook(self._after),
            ]

    def detach(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        self._labels = None
        if not (kwargs.get(_SWITCH) and module.training and torch.is_grad_enabled()):
            return None
        names = ("labels", "shift_labels", "num_items_in_batch")
        self._labels = {name: kwargs.get(name) for name in names}
        return args, {name: value for name, value in kwargs.items() if name not in (*names, _SWITCH)}

    def _after(self, module: nn.Module, args: Any, output: Any) -> TokenLogProbabilities | None:
        labels, self._labels = self._labels, None
        return None if labels is None else token_log_probabilities(output.logits, output, **labels)


def token_log_probabilities(
    logits: Tensor,
    output: Any = None,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> TokenLogProbabilities:
    """Compute the output of a fused head from the logits.

    Args:
        logits: shape ``(batch, tokens, vocabulary)``.
        output: the model's output, for ``aux_loss``.
        labels: shape ``(batch, tokens)``, -100 where ignored; shifted by one here.
        shift_labels: the same, already shifted.
        num_items_in_batch: divisor of the summed loss; None: the number of labels that count.

    Examples:
        >>> result = token_log_probabilities(torch.zeros(1, 3, 4), labels=torch.tensor([[0, 1, -100]]))
        >>> [round(x, 3) for x in result.log_probs[0].tolist()], round(result.loss.item(), 3)
        ([-1.386, 0.0], 1.386)
    """
    if shift_labels is None:
        assert labels is not None
        # Prompt tuning puts virtual tokens in front.
        labels = nn.functional.pad(labels, (logits.shape[1] - labels.shape[1], 0), value=-100)
        logits, targets = logits[:, :-1], labels[:, 1:]
    else:
        targets = shift_labels
    targets = targets.to(logits.device)
    mask = targets != -100
    index = targets.clamp_min(0).unsqueeze(-1)
    log_p = logits.float().log_softmax(-1)
    log_probs = log_p.gather(-1, index).squeeze(-1).masked_fill(~mask, 0)
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p).sum(-1)
        per_token = [entropy, (2 * log_p).logsumexp(-1), logits.float().mean(-1)]
        entropy, log_sum_sq_probs, mean_logits = (t.masked_fill(~mask, 0) for t in per_token)
        is_top1 = (logits.argmax(-1) == targets) & mask
    total = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return TokenLogProbabilities(
        loss=-log_probs.sum() / total,
        log_probs=log_probs,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs,
        mean_logits=mean_logits,
        is_top1=is_top1,
        label_mask=mask,
        aux_loss=getattr(output, "aux_loss", None),
    )
