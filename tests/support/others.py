"""Other people's trainers: kappa of a first batch by several estimators, and what they log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_fam import FAMMixin, RelativeFlatness
from hf_fam._compat import prepared_inputs


def first_batch(trainer: FAMMixin) -> dict[str, Any]:
    """What the first training step gets."""
    torch.manual_seed(0)  # some samplers draw from it
    return prepared_inputs(trainer, next(iter(trainer.get_train_dataloader())))


def draws(trainer: FAMMixin, whole: nn.Module, layer: str, estimator: str, count: int = 1) -> Tensor:
    """kappa of the first batch under the trainer's own loss (without a term), once for every draw of the probes."""
    assert trainer.fam_args.fam_lambda == 0
    flatness = RelativeFlatness(whole, layer, estimator)
    inputs = first_batch(trainer)
    found = []
    for _ in range(count):
        torch.manual_seed(0)  # dropout
        with flatness.capture():
            loss = trainer.compute_loss(trainer.model.train(), dict(inputs))
        found.append(flatness(loss).detach())
    flatness.detach()
    return torch.stack(found)


def assert_unbiased(trainer: FAMMixin, whole: nn.Module, layer: str, count: int = 200) -> None:
    """The mean of Hessian probes is the dense kappa, within five standard errors, which are small enough to see."""
    (true,) = draws(trainer, whole, layer, "dense")
    probes = draws(trainer, whole, layer, "hessian", count)
    error = probes.std() / count**0.5
    assert abs(probes.mean() - true) <= 5 * error
    assert error > 0


def logged(trainer: Trainer, name: str) -> list[float]:
    """The values under a name in the trainer's log."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
