"""The log of the flatness term, kept on the device until the Trainer logs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flatness.strength import delta_of
from .not_finite import explain_labels, explain_value

LARGEST_RATIO = 1e30

# Micro-batches to keep before they are summed on the device. Summing each one would launch a dozen kernels.
_MAX_ENTRIES = 64


@dataclass(frozen=True)
class _Entry:
    step: int
    loss: Tensor  # of the micro-batch
    kappa: Tensor  # some estimators fill it in the backward pass
    share: float  # weight of the micro-batch in its step
    strength: float
    squares: Tensor | None
    labels: Tensor | None  # their sum


class FlatnessLog:
    """Means of kappa, its term, lambda and the gradient ratio since the last log.

    The memory does not grow with the number of micro-batches between two logs.

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
        self._last_step: int | None = None  # of the sums
        self._sums: Tensor | None = None
        self._first_invalid: Tensor | None = None  # of the entries that were summed unchecked

    def add(
        self,
        step: int,
        loss: Tensor,
        kappa: Tensor,
        share: float,
        strength: float,
        squares: Tensor | None,
        labels: Tensor | None = None,
    ) -> None:
        """Add one micro-batch, after the backward pass of the one before.

        Args:
            step: number of optimizer steps so far.
            loss: loss of the micro-batch, detached.
            kappa: kappa of the micro-batch, detached.
            share: weight of the micro-batch in the mean over its step.
            strength: lambda.
            squares: ``||d kappa||^2`` and ``||d loss||^2``, shape ``(2,)``, or None if they were not measured.
            labels: sum of the labels if they are floating-point numbers, else None.
        """
        if len(self._entries) == _MAX_ENTRIES:
            self._sum_entries()
        self._entries.append(_Entry(step, loss, kappa, share, strength, squares, labels))

    def problem(self) -> str | None:
        """Check the entries since the last check, and return what is wrong.

        The check waits for the device. It ignores a loss of NaN whose kappa is 0, because the mean loss of a batch
        without labels is NaN and has no gradient.

        Returns:
            A message that names the value that is not finite, the step and the likely cause, or None.
        """
        new, self._checked = self._entries[self._checked :], len(self._entries)
        summed, self._first_invalid = self._first_invalid, None
        if summed is not None:
            is_invalid, step, loss, kappa, strength, labels = summed.tolist()
            if is_invalid:
                return _explain(int(step), loss, kappa, strength, labels)
        if not new:
            return None
        if {e.kappa.device.type for e in new} | {e.loss.device.type for e in new} == {"cpu"}:  # nothing to wait for
            invalid = [e for e in new if _is_invalid(e.kappa.item(), e.loss.item())]
        else:
            is_invalid, number = _first_invalid(new)
            invalid = [new[int(number)]] if bool(is_invalid) else []
        if not invalid:
            return None
        entry = invalid[0]
        labels = 0.0 if entry.labels is None else entry.labels.item()
        return _explain(entry.step, entry.loss.item(), entry.kappa.item(), entry.strength, labels)

    def drain(self, in_features: int, mean_over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last call by their logged names, and empty the log.

        ``fam_grad_ratio`` is the ratio of root mean squares over the micro-batches where it was measured. kappas that
        are not finite are left out: a gradient scaler skips their steps.

        Args:
            in_features: m, for ``fam_delta = sqrt(2 m lambda)``.
            mean_over_processes: averages a tensor over all processes.
        """
        if self._entries:
            self._sum_entries()
        sums, self._sums, self._last_step = self._sums, None, None
        self._checked, self._first_invalid = 0, None
        if sums is None:
            return {}
        kappa, term, steps, strength, entries, *squares = sums
        means = [kappa / steps, term / steps, strength / entries, *squares]
        # All processes must exchange tensors of one shape.
        *values, term_square, loss_square = mean_over_processes(torch.stack(means)).tolist()
        logs = dict(zip(["fam_kappa", "fam_term", "fam_lambda"], values, strict=True))
        if math.isnan(values[0]):  # every step was skipped
            return {}
        if term_square or loss_square:
            logs["fam_grad_ratio"] = ratio_of_norms(term_square, loss_square)
        logs["fam_delta"] = delta_of(logs["fam_lambda"], in_features)
        return {name: float(f"{x:.7g}") for name, x in logs.items()}

    def _sum_entries(self) -> None:
        """Replace the entries by sums on the device, without waiting for it."""
        entries, unchecked = self._entries, self._entries[self._checked :]
        is_new_step = [one != other for one, other in itertools.pairwise([self._last_step, *(e.step for e in entries)])]
        kappa = _stack([e.kappa for e in entries])
        is_kept = kappa.isfinite().to(kappa.dtype)
        host = [(e.share, e.strength, float(new)) for e, new in zip(entries, is_new_step, strict=True)]
        share, strength, is_new = _to_device(host, kappa).unbind(-1)
        weighted = kappa.nan_to_num(0.0, 0.0, 0.0) * share
        squares = torch.stack([kappa.new_zeros(2) if e.squares is None else e.squares.to(kappa) for e in entries])
        term_square, loss_square = strength.square() @ squares[:, 0], squares[:, 1].sum()
        sums = [weighted.sum(), weighted @ strength, is_new @ is_kept, strength @ is_kept, is_kept.sum()]
        total = torch.stack([*sums, term_square, loss_square])
        self._sums = total if self._sums is None else self._sums + total
        if unchecked:
            self._remember_first_invalid(unchecked)
        self._entries, self._checked, self._last_step = [], 0, entries[-1].step

    def _remember_first_invalid(self, entries: Sequence[_Entry]) -> None:
        """Store whether an entry is invalid, and what the message needs, until the next check."""
        kappa, loss = _stack([e.kappa for e in entries]), _stack([e.loss for e in entries])
        labels = _stack([e.kappa.new_zeros(()) if e.labels is None else e.labels for e in entries])
        step, strength = _to_device([(float(e.step), e.strength) for e in entries], kappa).unbind(-1)
        is_invalid, number = _first_invalid(entries)
        columns = torch.stack([step, loss, kappa, strength, labels]).index_select(1, number.view(1)).flatten()
        record = torch.cat([is_invalid.to(columns.dtype).view(1), columns])
        earlier = self._first_invalid
        self._first_invalid = record if earlier is None else torch.where(earlier[0] > 0, earlier, record)


def _first_invalid(entries: Sequence[_Entry]) -> tuple[Tensor, Tensor]:
    """Return whether an entry is invalid, and the number of the first such entry."""
    kappas, losses = (torch.stack(values) for values in ([e.kappa for e in entries], [e.loss for e in entries]))
    is_invalid = ~kappas.isfinite() | (~losses.isfinite() & (kappas != 0))
    return is_invalid.any(), is_invalid.to(torch.int8).argmax()


def _is_invalid(kappa: float, loss: float) -> bool:
    """Return the same about numbers of the host."""
    return not math.isfinite(kappa) or (not math.isfinite(loss) and kappa != 0)


def _explain(step: int, loss: float, kappa: float, strength: float, labels: float) -> str:
    if not math.isfinite(labels):
        return explain_labels(step)
    name, value = ("the loss", loss) if math.isfinite(kappa) else ("relative flatness", kappa)
    return explain_value(name, value, step, strength)


def _stack(values: Sequence[Tensor]) -> Tensor:
    """Return numbers in one tensor, in the widest precision of their device."""
    dtype = torch.float32 if values[0].device.type == "mps" else torch.float64
    return torch.stack([*values]).to(dtype)


def _to_device(rows: Sequence[tuple[float, ...]], like: Tensor) -> Tensor:
    """Return numbers of the host as a tensor on the device, without waiting for it."""
    is_pinned = like.device.type == "cuda"
    return torch.tensor(rows, dtype=like.dtype, pin_memory=is_pinned).to(like.device, non_blocking=True)


def ratio_of_norms(square: float, other_square: float) -> float:
    """Return the ratio of two norms from their squares, at most 1e30."""
    if square > 0 and other_square < square * LARGEST_RATIO**-2:
        return LARGEST_RATIO
    return (square / other_square) ** 0.5 if other_square else 0.0
