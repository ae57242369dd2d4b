"""What the trainer logs of the term: kept on the device, gathered only when something is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..flatness.strength import delta_of

LARGEST_RATIO = 1e30


@dataclass(frozen=True)
class _Entry:
    step: int
    loss: Tensor  # of one micro-batch
    kappa: Tensor  # the perturbation estimator fills it in the backward pass
    share: float  # of the micro-batch in its step
    strength: float
    squares: Tensor | None


def problem_of_weights(model: nn.Module, step: int, strength: float) -> str | None:
    """What keeps weights out of a checkpoint: a finite kappa can have an infinite gradient.

    Args:
        model: the model that is about to be saved.
        step: optimizer steps already taken.
        strength: lambda.

    Returns:
        The weight that is not finite, the step and the likely cause; None if all are finite.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            return f"'{name}' is not finite after step {step}, which is not saved: {_cause_and_remedy(strength)}"
    return None


def _cause_and_remedy(strength: float) -> str:
    return (
        f"most likely the training diverged (learning rate too large, or fam_lambda={strength:g} too strong), or half "
        "precision overflowed. Lower them, or add fam_warmup_steps; the last checkpoint is "
        "usable (resume_from_checkpoint=True)."
    )


class FlatnessLog:
    """Means of kappa, term, strength and gradient ratio over the steps since the last log.

    Examples:
        >>> import torch
        >>> log = FlatnessLog()
        >>> loss = torch.tensor(1.0)
        >>> log.add(step=0, loss=loss, kappa=torch.tensor(2.0), share=0.5, strength=0.1, squares=None)
        >>> log.add(step=0, loss=loss, kappa=torch.tensor(4.0), share=0.5, strength=0.1, squares=None)
        >>> log.drain(in_features=5, mean_over_processes=lambda t: t)
        {'fam_kappa': 3.0, 'fam_term': 0.3, 'fam_lambda': 0.1, 'fam_delta': 1.0}
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._checked = 0

    def add(
        self, step: int, loss: Tensor, kappa: Tensor, share: float, strength: float, squares: Tensor | None
    ) -> None:
        """Note one micro-batch.

        Args:
            step: optimizer steps already taken.
            loss: of the micro-batch, detached.
            kappa: of the micro-batch, detached.
            share: factor with which the micro-batch enters the mean over its step.
            strength: lambda.
            squares: ``||d kappa||^2`` and ``||d loss||^2``, shape ``(2,)``, where they were measured.
        """
        self._entries.append(_Entry(step, loss, kappa, share, strength, squares))

    def problem(self) -> str | None:
        """Look at what came since the last look; waits for the device.

        A loss that is not finite is one only if the batch has a kappa: the mean over a batch without labels is NaN and
        has no gradient.

        Returns:
            What is not finite, the step and the likely cause; None if all is well.
        """
        new, self._checked = self._entries[self._checked :], len(self._entries)
        if not new:
            return None
        kappas, losses = (torch.stack(found) for found in ([e.kappa for e in new], [e.loss for e in new]))
        bad = ~kappas.isfinite() | (~losses.isfinite() & (kappas != 0))
        if not bool(bad.any()):
            return None
        entry = new[int(bad.to(torch.int8).argmax())]
        name, value = ("the loss", entry.loss) if entry.kappa.isfinite() else ("relative flatness", entry.kappa)
        return f"{name} is {value.item()} at step {entry.step}: {_cause_and_remedy(entry.strength)}"

    def drain(
        self, in_features: int, mean_over_processes: Callable[[Tensor], Tensor], *, finite_only: bool = False
    ) -> dict[str, float]:
        """Return the means since the last call, under the names that are logged; empty if there was nothing.

        ``fam_grad_ratio`` is the ratio of root mean squares, over what was measured.

        Args:
            in_features: m, for ``fam_delta = sqrt(2 m lambda)``.
            mean_over_processes: averages a tensor over all processes.
            finite_only: leave out steps whose kappa is not finite, which a gradient scaler skipped.
        """
        entries, self._entries, self._checked = self._entries, [], 0
        if not entries:
            return {}
        dtype = torch.promote_types(entries[0].kappa.dtype, torch.float32)
        kappa = torch.stack([e.kappa.to(dtype) * e.share for e in entries])
        if finite_only:
            kept = kappa.isfinite()
            entries, kappa = [e for e, keep in zip(entries, kept.tolist(), strict=True) if keep], kappa[kept]
        steps = len({e.step for e in entries})
        strength = kappa.new_tensor([e.strength for e in entries])
        squares = kappa.new_zeros(2)
        for e in entries:
            if e.squares is not None:
                squares = squares + e.squares.to(dtype) * kappa.new_tensor([e.strength**2, 1.0])
        means = [kappa.sum() / steps, (kappa * strength).sum() / steps, strength.mean(), *squares]
        # One tensor of one shape, whatever this process measured.
        *values, of_term, of_loss = mean_over_processes(torch.stack(means)).tolist()
        logs = dict(zip(["fam_kappa", "fam_term", "fam_lambda"], values, strict=True))
        if of_term or of_loss:
            logs["fam_grad_ratio"] = ratio_of_norms(of_term, of_loss)
        logs["fam_delta"] = delta_of(logs["fam_lambda"], in_features)
        return {name: float(f"{x:.7g}") for name, x in logs.items()}


def ratio_of_norms(square: float, other_square: float) -> float:
    """Return the ratio of two norms from their squares, at most 1e30, as where the loss has no gradient."""
    if square > 0 and other_square < square * LARGEST_RATIO**-2:
        return LARGEST_RATIO
    return (square / other_square) ** 0.5 if other_square else 0.0
