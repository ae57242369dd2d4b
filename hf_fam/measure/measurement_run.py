"""The passes over the data of one measurement: the first batch, all batches, a record of every layer."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import SecondDerivativeError
from ..calculus.lanczos import Eigenvalues
from ..flatness.row_blocks import RowBlocks
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.finding import find_head, unwrap
from .data import Batches, count_items, item_weights, to_device
from .forward import CapturingForward, LossFunction
from .layer_measurement import LayerMeasurement
from .normalization import FeatureDeviation
from .results import LayerFlatness
from .row_probes import RowProbes
from .spectrum import largest_eigenvalue_of_layer, largest_eigenvalues_of_rows

TRACE, MAX_EIGENVALUE, LAYERWISE = "trace", "max_eigenvalue", "layerwise"
HESSIAN_MAX_EIGENVALUE = "hessian_max_eigenvalue"
MEASURES = (TRACE, MAX_EIGENVALUE, LAYERWISE, HESSIAN_MAX_EIGENVALUE)


class MeasurementRun:
    """The passes over the data of one measurement."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        layers: list[FeatureLayer],
        loss_fn: LossFunction | None,
        accelerator: Any,
        progress: bool | None,
    ) -> None:
        self.model, self._batches, self._layers = model, batches, layers
        self._loss_fn, self._accelerator = loss_fn, accelerator
        show_progress = sys.stderr.isatty() if progress is None else progress
        self._progress = show_progress and (accelerator is None or accelerator.is_main_process)
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        _, head = find_head(unwrap(model))
        self._head = next((layer for layer in layers if layer.module is head), None)
        self._unmeasured: list[FeatureLayer] = []
        self._batches_read: int | None = None  # number of batches of this process before an early stop
        self._sums = torch.zeros(3, dtype=torch.float64)  # loss, weights, items
        self.stopped_early = False

    def prepare(
        self, measures: Sequence[str], normalize: bool, kind: RowProbes | None, probes: int, seed: int
    ) -> list[LayerMeasurement]:
        """Start the measurement of every layer on the first batch with labels.

        It also computes the deviations of the features.

        Raises:
            ValueError: no item has a label.
        """
        if kind is not None and kind.needs_logits and self._head is None:
            _, head = find_head(unwrap(self.model))
            self._head = FeatureLayer(unwrap(self.model), head)
            self._unmeasured = [self._head]
        # A batch without labels has no curvature, so it cannot show how the loss depends on a layer.
        first = to_device(self._batches.first(lambda batch: bool(self._weights(batch).any())), self._device)
        deviations = self._deviations() if normalize else [None] * len(self._layers)
        measurements = []
        with self._capturing_forward() as forward, explain_missing_derivatives():
            loss, captures = forward(first)
            logits = self._logits(captures)
            for layer, captured, deviation in zip(self._layers, captures, deviations, strict=False):
                blocks = None
                if MAX_EIGENVALUE in measures:
                    blocks = RowBlocks(layer.out_features, layer.in_features)
                measurement = LayerMeasurement(
                    layer, layer is self._head, kind, probes, LAYERWISE in measures, blocks, deviation, seed
                )
                measurement.begin(loss, captured, logits)
                measurements.append(measurement)
        return measurements

    def stream(self, measurements: list[LayerMeasurement], relative_error: float | None) -> None:
        """Pass over the data, and stop early at the wanted relative error."""
        numbered = iter(self._with_bar(self._batches.of_this_process(), "relative flatness"))
        count = 0
        with self._capturing_forward() as forward, explain_missing_derivatives():
            while True:
                item = next(numbered, None)
                if item is not None:
                    self._add(forward, measurements, *item)
                    count += 1
                if relative_error is not None:
                    any_batch = self.reduce(torch.tensor([float(item is not None)], dtype=torch.float64))
                    if any_batch == 0:
                        break
                    if self._precise(measurements, relative_error):
                        self._batches_read, self.stopped_early = count, next(numbered, None) is not None
                        break
                elif item is None:
                    break
        if relative_error is not None and not self.stopped_early:
            self._warn_if_imprecise(measurements, relative_error)

    def record(self, measurement: LayerMeasurement, measures: Sequence[str], alpha: float) -> LayerFlatness:
        """Return the record of one layer.

        Its eigenvalues may take further passes.
        """
        started = time.perf_counter()
        layer, exact = measurement.layer, measurement.exact
        kappa = measurement.kappa.mean(self.reduce, exact=exact)
        trace_estimate = measurement.trace.mean(self.reduce, exact=exact) if LAYERWISE in measures else None
        weight = measurement.weight
        squares = weight.double().square().sum(-1)
        square, m, d = float(squares.sum()), layer.in_features, layer.out_features
        loss, total, items = self.reduce(self._sums.clone()).tolist()
        kappa_max = layer_eigenvalue = None
        unconverged: dict[str, Eigenvalues] = {}
        if MAX_EIGENVALUE in measures:
            row_eigenvalues = largest_eigenvalues_of_rows(measurement, self, total)
            kappa_max = float(squares @ row_eigenvalues.values.to(squares)) + 2 * alpha * square
            if not row_eigenvalues.converged.all():
                unconverged["kappa_max"] = row_eigenvalues
        if HESSIAN_MAX_EIGENVALUE in measures:
            layer_eigenvalues = largest_eigenvalue_of_layer(measurement, self, total)
            layer_eigenvalue = float(layer_eigenvalues.values) + 2 * alpha
            if not layer_eigenvalues.converged.all():
                unconverged["hessian_max_eigenvalue"] = layer_eigenvalues
        _warn_of_bounds(layer.name, unconverged)
        layerwise = None
        if trace_estimate is not None:
            layerwise = measurement.layerwise.mean(self.reduce).value + 2 * alpha * m * self._group_sizes(measurement)
        trace = None if trace_estimate is None else trace_estimate.value + 2 * alpha * d * m
        return LayerFlatness(
            layer=layer.name,
            kappa=kappa.value + 2 * alpha * m * square,
            standard_error=kappa.error,
            standard_error_items=kappa.items_error,
            standard_error_probes=kappa.probes_error,
            kappa_max=kappa_max,
            layerwise=layerwise,
            hessian_trace=trace,
            hessian_trace_error=None if trace_estimate is None else trace_estimate.error,
            hessian_max_eigenvalue=layer_eigenvalue,
            weight_norm=math.sqrt(square),
            in_features=m,
            out_features=d,
            num_items=round(items),
            loss=loss / total,
            estimator=measurement.estimator,
            coupling=measurement.coupling.value,
            probes=measurement.probes,
            products=round(float(self.reduce(torch.tensor([float(measurement.products)])))),
            seconds=measurement.seconds + time.perf_counter() - started,
            item_kappas=measurement.sample.merged(self._gather),
            not_converged=tuple(unconverged),
        )

    @staticmethod
    def _group_sizes(measurement: LayerMeasurement) -> float:
        """Return ``sum_g ||W_g||^2 d_g``.

        m times it is the layer-wise version's increase for one more unit of curvature in every weight.
        """
        groups = measurement.linear_map.groups
        return float(measurement.weight.double().square().sum()) * measurement.linear_map.out_features / groups

    def passes(self, layer: FeatureLayer, name: str) -> Iterator[tuple[Tensor, list[Capture], float]]:
        """Yield loss, captures and weight of every batch that was read."""
        with CapturingForward(self.model, [layer], self._loss_fn) as forward:
            for _, batch in self._with_bar(self._batches.of_this_process(self._batches_read), name):
                batch = to_device(batch, self._device)
                weights = self._weights(batch)
                if weights.any():
                    loss, (captured,) = forward(batch)
                    yield loss, captured, float(weights.sum())

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes."""
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return tensor
        device = self._accelerator.device
        return self._accelerator.reduce(tensor.to(device), reduction="sum").to(tensor.device)

    def _gather(self, tensor: Tensor) -> Tensor:
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return tensor
        return self._accelerator.gather(tensor.to(self._accelerator.device)).cpu()

    def _capturing_forward(self) -> CapturingForward:
        return CapturingForward(self.model, [*self._layers, *self._unmeasured], self._loss_fn)

    def _logits(self, captures: list[list[Capture]]) -> list[Capture]:
        if self._head is None:
            return []
        return captures[[*self._layers, *self._unmeasured].index(self._head)]

    def _add(self, forward: CapturingForward, measurements: list[LayerMeasurement], number: int, batch: Any) -> None:
        started = time.perf_counter()
        batch = to_device(batch, self._device)
        weights = self._weights(batch)
        if not weights.any():  # no label counts
            return
        loss, captures = forward(batch)
        seconds = (time.perf_counter() - started) / len(measurements)
        logits = self._logits(captures)
        for measurement, captured in zip(measurements, captures, strict=False):
            measurement.add(loss, captured, logits, number, weights)
            measurement.seconds += seconds
        scale = float(weights.sum())
        labeled = float(weights.count_nonzero())
        self._sums += torch.tensor([scale * float(loss.detach()), scale, labeled], dtype=torch.float64)

    def _weights(self, batch: Any) -> Tensor:
        return item_weights(self.model, batch, count_items(batch))

    def _deviations(self) -> list[Tensor | None]:
        deviations = [FeatureDeviation(layer.linear_map) for layer in self._layers]
        with self._capturing_forward() as forward:
            for _, batch in self._with_bar(self._batches.of_this_process(), "standard deviations"):
                _, captures = forward(to_device(batch, self._device))
                for deviation, captured in zip(deviations, captures, strict=False):
                    for call in captured:
                        deviation.add(call.features)
        return [deviation.result(self.reduce).to(self._device) for deviation in deviations]

    def _precise(self, measurements: list[LayerMeasurement], relative_error: float) -> bool:
        means = [m.kappa.mean(self.reduce, exact=m.exact) for m in measurements]
        return all(mean.error <= relative_error * abs(mean.value) for mean in means)

    def _warn_if_imprecise(self, measurements: list[LayerMeasurement], relative_error: float) -> None:
        for m in measurements:
            mean = m.kappa.mean(self.reduce, exact=m.exact)
            if not mean.error <= relative_error * abs(mean.value):
                more = "items" if mean.items_error >= mean.probes_error else "probes"
                warnings.warn(
                    f"relative_error={relative_error:g} was not reached at '{m.layer.name}': the standard error is "
                    f"{mean.error / abs(mean.value):.2g} of kappa; more {more} would reduce most of it.",
                    stacklevel=4,
                )

    def _with_bar(self, batches: Any, name: str) -> Any:
        if not self._progress:
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, desc=name, total=self._batches.length, leave=False)


@contextlib.contextmanager
def explain_missing_derivatives() -> Iterator[None]:
    """Add a remedy to errors about missing second derivatives."""
    try:
        yield
    except SecondDerivativeError as error:
        raise SecondDerivativeError(
            "an operation above a measured layer has no second derivative "
            f'({str(error).splitlines()[0]}). If it is attention, call model.set_attn_implementation("eager"). '
            'Otherwise choose layers above it, such as layers="head".'
        ) from error


def _warn_of_bounds(layer: str, unconverged: dict[str, Eigenvalues]) -> None:
    for name, eigenvalues in unconverged.items():
        residual = eigenvalues.residuals[~eigenvalues.converged].max() / eigenvalues.values.abs().max()
        warnings.warn(
            f"{name} of '{layer}' is a lower bound: Lanczos iterations reached their limit before all of "
            f"{len(eigenvalues.values)} eigenvalues converged. {int((~eigenvalues.converged).sum())} of them have "
            f"residuals of up to {float(residual):.2g} of the largest.",
            stacklevel=4,
        )
