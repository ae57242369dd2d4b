"""What is compared on the GPU: plain training, FAM, SAM and NEFTune, a training step each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from cost.steps import Steps
from torch import Tensor, nn

Batch = dict[str, Tensor]
Step = Callable[[Batch], None]

_SAM_RHO, _NEFTUNE_ALPHA = 0.05, 5.0


def make_contenders(
    model: nn.Module, fam: Mapping[str, dict[str, Any]], others: tuple[str, ...], given: dict[str, Any]
) -> dict[str, Step]:
    """Return the contenders by name, plain training first; they share the model and its optimizer.

    Args:
        model: what they train.
        fam: fam_* arguments by name.
        others: ``"sam"``, ``"neftune"``.
        given: arguments of the Trainer.
    """
    plain = Steps(model, given=given)
    optimizer = plain.trainer.optimizer.optimizer
    contenders: dict[str, Step] = {"plain": plain}
    for name, options in fam.items():
        contenders[name] = Steps(model, options, optimizer=optimizer, given=given)
    if "sam" in others:
        contenders["sam"] = SharpnessAware(plain)
    if "neftune" in others:
        contenders["neftune"] = NoisyEmbeddings(plain)
    return contenders


class SharpnessAware:
    """SAM (Foret et al. 2021): the gradients are those at weights that are moved along the gradients.

    Args:
        plain: the steps of plain training.
    """

    def __init__(self, plain: Steps) -> None:
        self._plain = plain

    @torch.no_grad()
    def __call__(self, batch: Batch) -> None:
        trainer, model = self._plain.trainer, self._plain.model
        (batch,), num_items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        with torch.enable_grad():
            self._plain.gradients(batch, num_items)
        weights = [p for p in model.parameters() if p.grad is not None]
        gradients = [p.grad.detach() for p in weights if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        offsets = torch._foreach_mul(gradients, _SAM_RHO / (norm + 1e-12))
        torch._foreach_add_(weights, offsets)
        with torch.enable_grad():
            self._plain.gradients(batch, num_items)
        torch._foreach_sub_(weights, offsets)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()


class NoisyEmbeddings:
    """NEFTune (Jain et al. 2024): uniform noise on the embeddings.

    Args:
        plain: the steps of plain training.
    """

    def __init__(self, plain: Steps) -> None:
        self._plain = plain

    def __call__(self, batch: Batch) -> None:
        hook = self._plain.model.get_input_embeddings().register_forward_hook(_add_noise)
        self._plain(batch)
        hook.remove()


def _add_noise(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    size = _NEFTUNE_ALPHA / (output.shape[1] * output.shape[2]) ** 0.5
    return output + torch.empty_like(output).uniform_(-size, size)
