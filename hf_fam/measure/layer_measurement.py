"""The measurement of one layer, from its first batch to its sums over the data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..calculus.derivatives import gradients, refuse_once_differentiable, wide
from ..flatness.batch import Batch, Seeds
from ..flatness.coupling import Coupling, CouplingFinder
from ..flatness.directions import draw, draw_for_trace
from ..flatness.estimators import ClosedForm
from ..flatness.head_loss import HeadLoss, NoClosedForm, recognize_calls
from ..flatness.loss_rounding import warn_of_rounding
from ..flatness.row_blocks import RowBlocks
from ..flatness.row_values import RowValues, closed_form_rows
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.linear_map import LinearMap
from .normalization import divide_by_deviation, multiply_columns
from .row_probes import HessianRows, RowProbes
from .running_sums import RandomSample, RunningMean


@dataclass
class LayerMeasurement:
    """One layer while it is measured.

    Attributes:
        layer: the layer.
        is_head: whether it is the layer into the logits.
        kind: the kind of probe; None for the closed form where it holds, and probes of the Hessian elsewhere.
        probes: random directions for each batch.
        with_trace: whether to measure Tr H and the layer-wise version.
        blocks: collects the row blocks; None without kappa_max, or if kappa_max takes separate passes.
        deviation: standard deviation of every feature, to divide features by; None without normalization.
        seed: seed of the probes.
        head_loss: the loss for which the closed form holds; None if it does not hold.
        exact: whether no random directions are needed.
    """

    layer: FeatureLayer
    is_head: bool
    kind: RowProbes | None
    probes: int
    with_trace: bool
    blocks: RowBlocks | None
    deviation: Tensor | None
    seed: int
    head_loss: HeadLoss | None = None
    exact: bool = False
    coupling: Coupling = Coupling.ROWS
    kappa: RunningMean = field(default_factory=RunningMean)
    trace: RunningMean = field(default_factory=RunningMean)
    layerwise: RunningMean = field(default_factory=RunningMean)
    sample: RandomSample = field(default_factory=RandomSample)
    products: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        own = self.layer.linear_map
        self.linear_map: LinearMap = own if self.deviation is None else multiply_columns(own, self.deviation)

    @property
    def estimator(self) -> str:
        """Name of the estimator that the layer is measured with."""
        return ClosedForm.name if self.kind is None else self.kind.name

    def begin(self, loss: Tensor, captures: Sequence[Capture], logits: Sequence[Capture]) -> None:
        """Find out on one batch how the loss depends on the layer.

        Raises:
            ValueError: the layer does not reach the loss, or one call of it feeds another.
            SecondDerivativeError: an operation of the tail has no second derivative.
        """
        batch = self._batch(loss, captures, logits, 0)
        is_hessian = self.kind is None or isinstance(self.kind, HessianRows)
        warn_of_rounding(loss, self.layer.name, has_values=is_hessian and not self.is_head)
        if self.is_head and self.kind is None:
            with contextlib.suppress(NoClosedForm):
                self.head_loss = recognize_calls(batch)
            if self.head_loss is not None:
                self.probes, self.exact = 0, True
                return
        self.kind = kind = self.kind or HessianRows()
        refuse_once_differentiable(gradients(loss, batch.pre_activations))
        finder = CouplingFinder()
        self.coupling = finder(batch)
        if finder.has_nested_calls:
            raise ValueError(
                f"layer '{self.layer.name}' is called several times in a forward pass and one call feeds the next, "
                "which cannot be measured. Choose a layer that is called once, such as the head."
            )
        if self.linear_map.groups > 1 and self.with_trace and not kind.has_grouped_layerwise:
            raise ValueError(
                f"layer '{self.layer.name}' is a grouped convolution, whose layer-wise version "
                f'estimator="{kind.name}" cannot measure: use "hessian", or measures without "layerwise".'
            )
        if self.coupling is not Coupling.ROWS or self.linear_map.groups > 1:
            self.blocks = None
        elif kind.can_be_exact:
            # With one product for each output the trace is exact. The row blocks take that many in any case.
            products = self.probes * (1 + self.with_trace)
            self.exact = self.blocks is not None or products >= self.linear_map.out_features
        if self.exact:
            self.probes = 0

    def add(
        self, loss: Tensor, captures: Sequence[Capture], logits: Sequence[Capture], number: int, weights: Tensor
    ) -> None:
        """Add one batch.

        Args:
            loss: mean loss of the batch.
            captures: captures of the layer.
            logits: captures of the head.
            number: number of the batch. The probes are a function of it.
            weights: weight of every item in the mean loss, see `item_weights`.
        """
        started = time.perf_counter()
        batch = self._batch(loss, captures, logits, number)
        rows = self._rows(batch)
        scale = float(weights.sum())
        self._collect(self.kappa, [r.kappa for r in rows], weights, scale, number)
        if self.with_trace:
            self._collect(self.trace, [r.trace for r in rows], weights, scale)
            self._collect(self.layerwise, [r.layerwise for r in rows], weights, scale)
        if self.blocks is not None and not self.blocks.has_overflown and self.exact:
            self._add_blocks(batch, rows[0].curvature, scale)
        self.seconds += time.perf_counter() - started

    def _rows(self, batch: Batch) -> list[RowValues]:
        """Return the contributions of the rows, for every probe."""
        if self.head_loss is not None:
            return [closed_form_rows(batch, self.head_loss)]
        assert self.kind is not None
        if self.exact:
            rows, products = self.kind.exact(batch)
            self.products += products
            return [rows]
        self.products += self.probes * (1 + self.with_trace)
        values = self.kind.values(batch)
        result = []
        for k in range(self.probes):
            kappa = [v.sum(-1) for v in values(draw(batch.features, batch.linear_map, self.coupling, batch.seeds, k))]
            if not self.with_trace:
                result.append(RowValues(kappa))
                continue
            shared = (batch.features, batch.pre_activations, batch.linear_map, self.coupling, batch.seeds)
            by_output = values(draw_for_trace(*shared, probe=k))
            squares = [self._group_squares(v) for v in by_output]
            trace = [v.sum(-1) for v in by_output]
            result.append(RowValues(kappa, trace, [(v * s).sum(-1) for v, s in zip(by_output, squares, strict=True)]))
        return result

    def _group_squares(self, like: Tensor) -> Tensor:
        """Return ``||W_g||_F^2`` of every output's group.

        With a single group, it is a scalar.
        """
        groups = self.linear_map.groups
        squares = self.weight.square().sum(-1).view(groups, -1).sum(-1).to(like)
        return squares if groups == 1 else squares.repeat_interleave(self.linear_map.out_features // groups)

    def _collect(
        self,
        running_mean: RunningMean,
        rows: list[Sequence[Tensor]],
        weights: Tensor,
        scale: float,
        number: int | None = None,
    ) -> None:
        """Add sums over items to a running mean.

        The whole batch is one unit if items are coupled, or if rows cannot be assigned to items.
        """
        items = len(weights)
        by_item = self.coupling is not Coupling.BATCH and all(r.numel() % items == 0 for r in rows[0])
        if by_item:
            sums = [sum(r.detach().double().reshape(items, -1).sum(1) for r in calls) for calls in rows]
            values = scale * torch.stack(sums, 1).cpu()  # type: ignore[arg-type]
            running_mean.add(values, weights)
            if number is not None:
                has_label = weights > 0
                self.sample.add(values.mean(1)[has_label] / weights[has_label], number)
        else:
            sums = [sum(r.detach().double().sum() for r in calls) for calls in rows]
            running_mean.add(scale * torch.stack(sums).cpu().unsqueeze(0), torch.tensor([scale]))  # type: ignore[arg-type]

    def _add_blocks(self, batch: Batch, curvatures: Sequence[Tensor], scale: float) -> None:
        assert self.blocks is not None
        for k, (phi, z) in enumerate(zip(batch.features, batch.pre_activations, strict=True)):
            curvature = curvatures[k].flatten(0, -2)
            dtype = wide(z.dtype)
            rows = self.linear_map.feature_rows(phi).detach().to(dtype).flatten(0, -2)
            self.blocks.add(rows, (scale * curvature).to(dtype))

    def group_rows(self, features: Tensor) -> Tensor:
        """Return phi of every row and group, shape ``(..., G, m)``.

        Features are divided by their deviations with ``deviation``.
        """
        rows = self.linear_map.feature_rows(self.normalized(features).detach())
        return rows.unflatten(-1, (self.linear_map.groups, -1))

    def _batch(self, loss: Tensor, captures: Sequence[Capture], logits: Sequence[Capture], number: int) -> Batch:
        return Batch(
            loss=loss,
            features=[self.normalized(c.features) for c in captures],
            pre_activations=[c.pre_activations for c in captures],
            linear_map=self.linear_map,
            logits=[c.pre_activations for c in logits],
            seeds=Seeds((self.seed, number)),
        )

    @property
    def weight(self) -> Tensor:
        """Return W, shape ``(d, m)``, in float32 or wider.

        Its columns are multiplied by the deviations with ``deviation``.
        """
        weight = self.linear_map.weight.detach()
        return weight.to(wide(weight.dtype))

    def normalized(self, features: Tensor) -> Tensor:
        """Return phi, divided by the standard deviations with ``deviation``."""
        return features if self.deviation is None else divide_by_deviation(features, self.deviation, self.linear_map)
