"""The log of the flatness term, kept on the device until the Trainer logs."""

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
    loss: Tensor  # of the micro-batch
    kappa: Tensor  # some estimators fill it in the backward pass
    share: float  # weight of the micro-batch in its step
    strength: float
    squares: Tensor | None


def problem_of_weights(model: nn.Module, step: int, strength: float) -> str | None:
    """Return why weights must not be saved, or None if all are finite.

    A finite kappa can have an infinite gradient.

    Args:
        model: the model to save.
        step: number of optimizer steps so far.
        strength: lambda.

    Returns:
        A message that names the weight, the step and the likely cause, or None.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            return f"'{name}' is not finite after step {step}, so no checkpoint is saved: {_cause_and_remedy(strength)}"
    return None


def _cause_and_remedy(strength: float) -> str:
    return (
        f"the training probably diverged (learning rate or fam_lambda={strength:g} too large), or half precision "
        "overflowed. Lower the learning rate or fam_lambda, or add fam_warmup_steps. You can resume from the last "
        "checkpoint (resume_from_checkpoint=True)."
    )


class FlatnessLog:
    """Means of kappa, its term, lambda and the gradient ratio since the last log.

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
        """Add one micro-batch.

        Args:
            step: number of optimizer steps so far.
            loss: loss of the micro-batch, detached.
            kappa: kappa of the micro-batch, detached.
            share: weight of the micro-batch in the mean over its step.
            strength: lambda.
            squares: ``||d kappa||^2`` and ``||d loss||^2``, shape ``(2,)``, or None if they were not measured.
        """
        self._entries.append(_Entry(step, loss, kappa, share, strength, squares))

    def problem(self) -> str | None:
        """Check the entries since the last check, and return what is wrong.

        The check waits for the device. It ignores a loss of NaN whose kappa is 0, because the mean loss of a batch
        without labels is NaN and has no gradient.

        Returns:
            A message that names the value that is not finite, the step and the likely cause, or None.
        """
        new, self._checked = self._entries[self._checked :], len(self._entries)
        if not new:
            return None
        kappas, losses = (torch.stack(values) for values in ([e.kappa for e in new], [e.loss for e in new]))
        is_invalid = ~kappas.isfinite() | (~losses.isfinite() & (kappas != 0))
        if not bool(is_invalid.any()):
            return None
        entry = new[int(is_invalid.to(torch.int8).argmax())]
        name, value = ("the loss", entry.loss) if entry.kappa.isfinite() else ("relative flatness", entry.kappa)
        return f"{name} is {value.item()} at step {entry.step}: {_cause_and_remedy(entry.strength)}"

    def drain(
        self, in_features: int, mean_over_processes: Callable[[Tensor], Tensor], *, finite_only: bool = False
    ) -> dict[str, float]:
        """Return the means since the last call by their logged names, and empty the log.

        ``fam_grad_ratio`` is the ratio of root mean squares over the micro-batches where it was measured.

        Args:
            in_features: m, for ``fam_delta = sqrt(2 m lambda)``.
            mean_over_processes: averages a tensor over all processes.
            finite_only: leave out kappas that are not finite, of steps that a gradient scaler skipped.
        """
        entries, self._entries, self._checked = self._entries, [], 0
        if not entries:
            return {}
        dtype = torch.promote_types(entries[0].kappa.dtype, torch.float32)
        kappa = torch.stack([e.kappa.to(dtype) * e.share for e in entries])
        if finite_only:
            is_kept = kappa.isfinite()
            entries, kappa = [e for e, keep in zip(entries, is_kept.tolist(), strict=True) if keep], kappa[is_kept]
        steps = len({e.step for e in entries})
        strength = kappa.new_tensor([e.strength for e in entries])
        squares = kappa.new_zeros(2)
        for e in entries:
            if e.squares is not None:
                squares = squares + e.squares.to(dtype) * kappa.new_tensor([e.strength**2, 1.0])
        means = [kappa.sum() / steps, (kappa * strength).sum() / steps, strength.mean(), *squares]
        # All processes must exchange tensors of one shape.
        *values, term_square, loss_square = mean_over_processes(torch.stack(means)).tolist()
        logs = dict(zip(["fam_kappa", "fam_term", "fam_lambda"], values, strict=True))
        if term_square or loss_square:
            logs["fam_grad_ratio"] = ratio_of_norms(term_square, loss_square)
        logs["fam_delta"] = delta_of(logs["fam_lambda"], in_features)
        return {name: float(f"{x:.7g}") for name, x in logs.items()}


def ratio_of_norms(square: float, other_square: float) -> float:
    """Return the ratio of two norms from their squares, at most 1e30."""
    if square > 0 and other_square < square * LARGEST_RATIO**-2:
        return LARGEST_RATIO
    return (square / other_square) ** 0.5 if other_square else 0.0
