"""What the trainer logs of the term: kept on the device, gathered only when something is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Entry:
    step: int
    kappa: Tensor  # of one micro-batch; the perturbation estimator fills it in the backward pass
    share: float  # of the micro-batch in its step
    strength: float
    ratio: Tensor | None


class NonFiniteFlatnessError(FloatingPointError):
    """kappa became infinite or NaN; training stops before it is written into a checkpoint."""


def refuse_non_finite_weights(model: nn.Module, step: int, strength: float) -> None:
    """Keep weights out of checkpoints that a finite kappa with an infinite gradient has spoiled.

    Args:
        model: the model that is about to be saved.
        step: optimiser steps already taken.
        strength: lambda.

    Raises:
        NonFiniteFlatnessError: names the weight, the step and the likely cause.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            raise NonFiniteFlatnessError(
                f"'{name}' is not finite after step {step}, which is not saved: {_cause_and_remedy(strength)}"
            )


def _cause_and_remedy(strength: float) -> str:
    return (
        f"most likely the training diverged (learning rate too large, or fam_lambda={strength:g} too strong), or half "
        "precision overflowed. Lower them, or add fam_warmup_steps or fam_max_grad_ratio; the last checkpoint is "
        "usable (resume_from_checkpoint=True)."
    )


class FlatnessLog:
    """Means of kappa, term, strength and gradient ratio over the steps since the last log.

    Examples:
        >>> import torch
        >>> log = FlatnessLog()
        >>> log.add(step=0, kappa=torch.tensor(2.0), share=0.5, strength=0.1, ratio=None)
        >>> log.add(step=0, kappa=torch.tensor(4.0), share=0.5, strength=0.1, ratio=None)
        >>> log.drain(in_features=5, mean_over_processes=lambda t: t)
        {'fam_kappa': 3.0, 'fam_term': 0.3, 'fam_lambda': 0.1, 'fam_delta': 1.0}
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._checked = 0

    def add(self, step: int, kappa: Tensor, share: float, strength: float, ratio: Tensor | None) -> None:
        """Note one micro-batch.

        Args:
            step: optimiser steps already taken.
            kappa: of the micro-batch, detached.
            share: factor with which the micro-batch enters the mean over its step.
            strength: lambda.
            ratio: ``||d kappa|| / ||d loss||``, where it was measured.
        """
        self._entries.append(_Entry(step, kappa, share, strength, ratio))

    def check_finite(self) -> None:
        """Look at what came since the last check; waits for the device.

        Raises:
            NonFiniteFlatnessError: names the step and the likely cause.
        """
        new, self._checked = self._entries[self._checked :], len(self._entries)
        if not new or bool(torch.stack([e.kappa for e in new]).isfinite().all()):
            return
        entry = next(e for e in new if not e.kappa.isfinite())
        raise NonFiniteFlatnessError(
            f"relative flatness is {entry.kappa.item()} at step {entry.step}: {_cause_and_remedy(entry.strength)}"
        )

    def drain(self, in_features: int, mean_over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last call, under the names that are logged; empty if there was nothing.

        Args:
            in_features: m, for ``fam_delta = sqrt(2 m lambda)``.
            mean_over_processes: averages a tensor over all processes.
        """
        entries, self._entries, self._checked = self._entries, [], 0
        if not entries:
            return {}
        steps = len({e.step for e in entries})
        dtype = torch.promote_types(entries[0].kappa.dtype, torch.float32)
        kappa = torch.stack([e.kappa.to(dtype) * e.share for e in entries])
        strength = kappa.new_tensor([e.strength for e in entries])
        measured = [e.ratio.to(dtype) * e.strength for e in entries if e.ratio is not None]
        means = [kappa.sum() / steps, (kappa * strength).sum() / steps, strength.mean()]
        means += [torch.stack(measured).mean()] if measured else []
        values = [float(f"{x:.7g}") for x in mean_over_processes(torch.stack(means)).tolist()]
        names = ["fam_kappa", "fam_term", "fam_lambda", "fam_grad_ratio"]
        logs = dict(zip(names, values, strict=False))
        return {**logs, "fam_delta": float(f"{(2 * in_features * logs['fam_lambda']) ** 0.5:.7g}")}
